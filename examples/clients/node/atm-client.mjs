// Gets, keeps and renews access tokens from ATM by client credentials (RFC 6749 section 4.4), and uses them with proofs of
// possession (DPoP, RFC 9449). Node 20, no packages.
//
//   ATM_ISSUER=https://id.example.com ATM_CLIENT_ID=... ATM_CLIENT_SECRET_FILE=... \
//     node atm-client.mjs [--dpop] orders-api orders.read https://api.example.com/orders

import { createHash, randomUUID, webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { subtle } = webcrypto;
const base64url = (data) => Buffer.from(data).toString("base64url");

/** The issuer gave no token. `code` is its OAuth error, `retry` whether asking again can help. */
export class TokenError extends Error {
  constructor(code, description, retry) {
    super(description ? `${code}: ${description}` : code);
    this.code = code;
    this.retry = retry;
  }
}

/** A key pair of this process and the proofs that it makes. The private key cannot be read out. */
export class DpopKey {
  static async generate() {
    const pair = await subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, ["sign", "verify"]);
    const { kty, crv, x, y } = await subtle.exportKey("jwk", pair.publicKey);
    return new DpopKey(pair.privateKey, { kty, crv, x, y });
  }

  constructor(privateKey, jwk) {
    this.privateKey = privateKey;
    this.jwk = jwk;
    this.nonces = new Map(); // by origin: each server has its own
  }

  /** RFC 9449 section 4.2. `token` binds the proof to it (`ath`). */
  async proof(method, url, token) {
    const { origin, pathname } = new URL(url);
    const claims = { jti: randomUUID(), htm: method, htu: origin + pathname, iat: Math.floor(Date.now() / 1000) };
    if (token) claims.ath = createHash("sha256").update(token).digest("base64url");
    const nonce = this.nonces.get(origin);
    if (nonce) claims.nonce = nonce;
    const head = base64url(JSON.stringify({ typ: "dpop+jwt", alg: "ES256", jwk: this.jwk }));
    const signed = `${head}.${base64url(JSON.stringify(claims))}`;
    const signature = await subtle.sign({ name: "ECDSA", hash: "SHA-256" }, this.privateKey, Buffer.from(signed));
    return `${signed}.${base64url(signature)}`;
  }

  /** Remembers the nonce of an answer; whether it is a new one. */
  remember(url, response) {
    const nonce = response.headers.get("dpop-nonce");
    const { origin } = new URL(url);
    const fresh = nonce !== null && nonce !== this.nonces.get(origin);
    if (nonce !== null) this.nonces.set(origin, nonce);
    return fresh;
  }
}

/** One token for one audience and scope. Renewed when four fifths of its life are over, by one request for all callers. */
export class TokenSource {
  constructor({ issuer, clientId, clientSecret, audience, scope, dpop }) {
    this.issuer = issuer.replace(/\/$/, "");
    // RFC 6749 section 2.3.1: both parts are form-encoded before they are joined.
    const pair = [clientId, clientSecret].map(encodeURIComponent).join(":");
    this.authorization = `Basic ${Buffer.from(pair).toString("base64")}`;
    this.form = new URLSearchParams({ grant_type: "client_credentials", audience, scope });
    this.dpop = dpop;
    this.renewAt = this.endsAt = 0;
  }

  /** A token that is valid now. */
  async token() {
    const now = performance.now();
    if (this.current && now < this.renewAt) return this.current;
    this.pending ??= this.renew(now).finally(() => (this.pending = undefined));
    try {
      await this.pending;
    } catch (error) {
      if (!error.retry || !this.current || now >= this.endsAt) throw error;
      this.renewAt = now + 1000; // the old one is still good; ask again soon
    }
    return this.current;
  }

  /** Forgets `token` after a 401 with error="invalid_token": it may have been revoked. */
  refused(token) {
    if (this.current === token) this.current = undefined;
  }

  async renew(now) {
    this.endpoint ??= await this.discover();
    let answer = await this.ask();
    // RFC 9449 section 8: the server may want a nonce of its own in the proof.
    if (answer.body.error === "use_dpop_nonce" && answer.fresh) answer = await this.ask();
    const { status, body } = answer;
    if (status !== 200) throw new TokenError(body.error ?? `http_${status}`, body.error_description, status >= 500 || status === 429);
    const life = (body.expires_in ?? 60) * 1000;
    this.current = body.access_token;
    this.scheme = body.token_type;
    this.endsAt = now + life - 1000;
    this.renewAt = now + life * (0.7 + 0.15 * Math.random());
  }

  async ask() {
    const headers = { accept: "application/json", authorization: this.authorization };
    if (this.dpop) headers.dpop = await this.dpop.proof("POST", this.endpoint);
    const response = await reach(this.endpoint, { method: "POST", headers, body: this.form });
    const fresh = this.dpop?.remember(this.endpoint, response) ?? false;
    return { status: response.status, fresh, body: await response.json().catch(() => ({})) };
  }

  async discover() {
    // RFC 8414 section 3: the well-known part goes before the issuer's path.
    const url = new URL(this.issuer);
    url.pathname = `/.well-known/oauth-authorization-server${url.pathname === "/" ? "" : url.pathname}`;
    const response = await reach(url, { headers: { accept: "application/json" } });
    if (!response.ok) throw new TokenError(`http_${response.status}`, `no metadata at ${url}`, response.status >= 500);
    const metadata = await response.json();
    if (metadata.issuer !== this.issuer) throw new TokenError("wrong_issuer", `${this.issuer} calls itself ${metadata.issuer}`, false);
    return metadata.token_endpoint;
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, { ...options, signal: AbortSignal.timeout(5000) });
  } catch (error) {
    throw new TokenError("unreachable", String(error.cause ?? error), true);
  }
}

/** GET with a token; once more when the server wants a nonce, or a token that was not refused. */
export async function call(source, url) {
  for (let attempt = 1; ; attempt++) {
    const token = await source.token();
    const headers = { authorization: `${source.scheme} ${token}` };
    if (source.dpop) headers.dpop = await source.dpop.proof("GET", url, token);
    const response = await reach(url, { headers });
    const fresh = source.dpop?.remember(url, response) ?? false;
    const challenge = response.headers.get("www-authenticate") ?? "";
    if (response.status === 401 && attempt < 3) {
      if (challenge.includes('error="use_dpop_nonce"') && fresh) continue;
      if (challenge.includes('error="invalid_token"')) {
        source.refused(token);
        continue;
      }
    }
    return response;
  }
}

async function main() {
  const rest = process.argv.slice(2);
  const dpop = rest[0] === "--dpop" ? (rest.shift(), await DpopKey.generate()) : undefined;
  const [audience, scope, url] = rest;
  const clientSecret = readFileSync(process.env.ATM_CLIENT_SECRET_FILE, "ascii").trim();
  const source = new TokenSource({ issuer: process.env.ATM_ISSUER, clientId: process.env.ATM_CLIENT_ID, clientSecret, audience, scope, dpop });
  const response = await call(source, url);
  console.log(await response.text());
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  main().catch((error) => {
    console.error(error instanceof TokenError ? `no token: ${error.message}` : error.message);
    process.exit(1);
  });
}
