//! PKCS #11: keys in a hardware security module, or in anything that speaks its interface. The module is loaded into this process.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use atm_core::key::Algorithm;
use aws_lc_rs::{digest, rand};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::{AuthPin, Ulong};
use futures::FutureExt;
use futures::future::BoxFuture;
use zeroize::Zeroizing;

use super::{KeyProvider, NewKey, ProviderError, der};

const NAME: &str = "pkcs11";
/// Sessions that are kept open.
const POOL: usize = 64;
/// Bits of new RSA keys.
const RSA_BITS: Ulong = Ulong::new(3072);

/// Which module, which token in it, and how to log in.
#[derive(Debug, Clone)]
pub struct Pkcs11Settings {
    /// The module's shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// File with the user's PIN.
    pub pin_file: PathBuf,
}

/// The token. A reference is the key's `CKA_ID`.
pub struct Pkcs11Provider(Arc<Inner>);

struct Inner {
    context: Pkcs11,
    settings: Pkcs11Settings,
    /// Sessions in which nothing is under way.
    idle: Mutex<Vec<Session>>,
}

impl fmt::Debug for Pkcs11Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Provider").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

impl Pkcs11Provider {
    /// Loads and initialises the module. The token itself may be away.
    pub fn new(settings: Pkcs11Settings) -> Result<Self, ProviderError> {
        let module = settings.module.display().to_string();
        let context = Pkcs11::new(&settings.module)
            .map_err(|error| refused(format!("the module {module} cannot be loaded: {error}")))?;
        match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Another part of this process has loaded the same module.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(refused(format!("the module {module} does not start: {error}"))),
        }
        Ok(Self(Arc::new(Inner { context, settings, idle: Mutex::default() })))
    }

    /// Runs `work` in a session, away from the runtime's threads: a module may block.
    async fn in_session<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let session = inner.session()?;
            let outcome = work(&session);
            // A session that failed may be of a token that was pulled out: it is not used again.
            if outcome.is_ok() {
                inner.give_back(session);
            }
            outcome.map_err(Failure::into_provider_error)
        })
        .await
        .map_err(|_| unavailable("the module has panicked".to_owned()))?
    }
}

/// What a call of the module came to.
enum Failure {
    Module(Error),
    Said(ProviderError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Module(error)
    }
}

impl Failure {
    fn into_provider_error(self) -> ProviderError {
        match self {
            Self::Said(error) => error,
            Self::Module(error) => module_error(&error),
        }
    }
}

impl Inner {
    /// An idle session, or a new one that is logged in.
    fn session(&self) -> Result<Session, ProviderError> {
        if let Some(session) = self.lock().pop() {
            return Ok(session);
        }
        let session = self.context.open_rw_session(self.slot()?).map_err(|error| module_error(&error))?;
        let file = &self.settings.pin_file;
        let pin = std::fs::read_to_string(file)
            .map(Zeroizing::new)
            .map_err(|error| unavailable(format!("PIN file {}: {error}", file.display())))?;
        match session.login(UserType::User, Some(&AuthPin::new(pin.trim_end_matches(['\r', '\n']).into()))) {
            // Being logged in is a property of the process, not of the session.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(error) => Err(module_error(&error)),
        }
    }

    fn slot(&self) -> Result<Slot, ProviderError> {
        let slots = self.context.get_slots_with_token().map_err(|error| module_error(&error))?;
        slots
            .into_iter()
            .find(|slot| {
                let token = self.context.get_token_info(*slot);
                token.is_ok_and(|token| token.label().trim_end() == self.settings.token)
            })
            .ok_or_else(|| unavailable(format!("there is no token with the label {:?}", self.settings.token)))
    }

    fn give_back(&self, session: Session) {
        let mut idle = self.lock();
        if idle.len() < POOL {
            idle.push(session);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        // Nothing panics under the lock, and sessions stay sessions.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyProvider for Pkcs11Provider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn generate(&self, algorithm: Algorithm) -> BoxFuture<'_, Result<NewKey, ProviderError>> {
        async move {
            let mut id = [0; 16];
            rand::fill(&mut id).map_err(|_| refused("there is no randomness".to_owned()))?;
            self.in_session(move |session| {
                let spki = generate(session, algorithm, &id)?;
                Ok(NewKey { spki, reference: id.to_vec() })
            })
            .await
        }
        .boxed()
    }

    fn sign<'a>(
        &'a self,
        algorithm: Algorithm,
        reference: &'a [u8],
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ProviderError>> {
        async move {
            let (id, message) = (reference.to_vec(), message.to_vec());
            self.in_session(move |session| {
                let key = find(session, ObjectClass::PRIVATE_KEY, &id)?
                    .ok_or_else(|| Failure::Said(refused("the token does not hold the key".to_owned())))?;
                let (mechanism, prepared) = prepared(algorithm, &message).map_err(Failure::Said)?;
                Ok(session.sign(&mechanism, key, &prepared)?)
            })
            .await
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, reference: &'a [u8]) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            let id = reference.to_vec();
            self.in_session(move |session| {
                for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                    if let Some(object) = find(session, class, &id)? {
                        session.destroy_object(object)?;
                    }
                }
                Ok(())
            })
            .await
        }
        .boxed()
    }
}

/// Makes the pair and reads its public half.
fn generate(session: &Session, algorithm: Algorithm, id: &[u8]) -> Result<Vec<u8>, Failure> {
    let label = format!("atm-{}", hex::encode(id)).into_bytes();
    let mut public = vec![
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::Id(id.to_vec()),
        Attribute::Label(label.clone()),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Id(id.to_vec()),
        Attribute::Label(label),
    ];
    let unreadable = || Failure::Said(refused("the public key of the new key cannot be read".to_owned()));
    if let Some(curve) = der::ec_parameters(algorithm) {
        public.extend([Attribute::KeyType(KeyType::EC), Attribute::EcParams(curve.to_vec())]);
        let (made, _) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
        let attributes = session.get_attributes(made, &[AttributeType::EcPoint])?;
        return match &attributes[..] {
            [Attribute::EcPoint(point)] => der::ec_spki(algorithm, point).ok_or_else(unreadable),
            _ => Err(unreadable()),
        };
    }
    if algorithm == Algorithm::EdDSA {
        return Err(Failure::Said(ProviderError::Algorithm { provider: NAME, algorithm }));
    }
    public.extend([Attribute::PublicExponent(vec![1, 0, 1]), Attribute::ModulusBits(RSA_BITS)]);
    let (made, _) = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
    let attributes =
        session.get_attributes(made, &[AttributeType::Modulus, AttributeType::PublicExponent])?;
    let (mut modulus, mut exponent) = (None, None);
    for attribute in attributes {
        match attribute {
            Attribute::Modulus(value) => modulus = Some(value),
            Attribute::PublicExponent(value) => exponent = Some(value),
            _ => {}
        }
    }
    Ok(der::rsa_spki(&modulus.ok_or_else(unreadable)?, &exponent.ok_or_else(unreadable)?))
}

fn find(session: &Session, class: ObjectClass, id: &[u8]) -> Result<Option<ObjectHandle>, Error> {
    let wanted = [Attribute::Class(class), Attribute::Id(id.to_vec())];
    Ok(session.find_objects(&wanted)?.into_iter().next())
}

/// The mechanism, and what it is given: `CKM_ECDSA` takes a digest, because not every module hashes for it.
fn prepared(algorithm: Algorithm, message: &[u8]) -> Result<(Mechanism<'static>, Vec<u8>), ProviderError> {
    let digested = |hash| digest::digest(hash, message).as_ref().to_vec();
    let pss = |hash_alg, mgf, length: u64| PkcsPssParams { hash_alg, mgf, s_len: Ulong::new(length) };
    Ok(match algorithm {
        Algorithm::ES256 => (Mechanism::Ecdsa, digested(&digest::SHA256)),
        Algorithm::ES384 => (Mechanism::Ecdsa, digested(&digest::SHA384)),
        Algorithm::ES512 => (Mechanism::Ecdsa, digested(&digest::SHA512)),
        Algorithm::RS256 => (Mechanism::Sha256RsaPkcs, message.to_vec()),
        Algorithm::RS384 => (Mechanism::Sha384RsaPkcs, message.to_vec()),
        Algorithm::RS512 => (Mechanism::Sha512RsaPkcs, message.to_vec()),
        Algorithm::PS256 => (
            Mechanism::Sha256RsaPkcsPss(pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32)),
            message.to_vec(),
        ),
        Algorithm::PS384 => (
            Mechanism::Sha384RsaPkcsPss(pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48)),
            message.to_vec(),
        ),
        Algorithm::PS512 => (
            Mechanism::Sha512RsaPkcsPss(pss(MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64)),
            message.to_vec(),
        ),
        Algorithm::EdDSA => return Err(ProviderError::Algorithm { provider: NAME, algorithm }),
    })
}

/// A refusal is what trying again does not mend; a token that was pulled out may come back.
fn module_error(error: &Error) -> ProviderError {
    let said = error.to_string();
    match error {
        Error::Pkcs11(
            RvError::PinIncorrect
            | RvError::PinLocked
            | RvError::MechanismInvalid
            | RvError::TemplateInconsistent,
            _,
        ) => refused(said),
        _ => unavailable(said),
    }
}

fn refused(problem: String) -> ProviderError {
    ProviderError::Refused { provider: NAME, problem }
}

fn unavailable(problem: String) -> ProviderError {
    ProviderError::Unavailable { provider: NAME, problem }
}
