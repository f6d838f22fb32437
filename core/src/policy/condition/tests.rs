use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A request with a token, as conditions see it.
struct Sample {
    claims: Map<String, Json>,
    names: Vec<String>,
}

impl Sample {
    fn new() -> Self {
        let claims = json!({
            "sub": "alice", "roles": ["admin", "audit"], "level": 3, "ratio": 0.5, "verified": true, "none": null,
            "org": {"id": "acme", "teams": [{"name": "blue", "size": 4}, {"name": "red", "size": 9}]},
            "https://claims.example/tier": "gold", "empty": [],
        });
        let Json::Object(claims) = claims else { unreachable!("an object") };
        Self { claims, names: vec!["spiffe://mesh/orders".to_owned()] }
    }
}

impl Facts for Sample {
    fn method(&self) -> &'static str {
        "GET"
    }
    fn host(&self) -> &'static str {
        "api.example.com"
    }
    fn path(&self) -> &'static str {
        "/orders/42"
    }
    fn query(&self) -> Option<&str> {
        Some("full=1")
    }
    fn scheme(&self) -> &'static str {
        "https"
    }
    fn source_address(&self) -> Option<&str> {
        Some("10.1.2.3")
    }
    fn header(&self, name: &str) -> Option<String> {
        (name == "x-tenant").then(|| "acme".to_owned())
    }
    fn extension(&self, name: &str) -> Option<&str> {
        (name == "zone").then_some("inner")
    }
    fn path_parameter(&self, name: &str) -> Option<&str> {
        (name == "id").then_some("42")
    }
    fn claims(&self) -> Option<&Map<String, Json>> {
        Some(&self.claims)
    }
    fn certificate(&self) -> Option<CertificateFacts<'_>> {
        Some(CertificateFacts { sha256: "abc", subject: "CN=orders", dns_names: &[], uris: &self.names })
    }
    fn now_seconds(&self) -> i64 {
        1_772_323_198 // Saturday, 2026-02-28T23:59:58Z
    }
}

fn evaluate(text: &str) -> Result<bool, ConditionFault> {
    let condition = Condition::compile(text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
    condition.evaluate(&Sample::new())
}

fn mistake(text: &str) -> ConditionError {
    Condition::compile(text).expect_err(text)
}

#[test]
fn what_holds_holds() {
    for text in [
        "true",
        "request.method == 'GET' && request.host.endsWith('.example.com')",
        "request.path.startsWith('/orders/') && request.query == 'full=1' && request.scheme == 'https'",
        "request.params.id == '42' && int(request.params.id) > 41",
        "request.headers['x-tenant'] == token.org.id",
        "'x-tenant' in request.headers && !('x-other' in request.headers)",
        "has(request.headers.x) == false",
        "request.extensions.zone == \"inner\"",
        "request.source.address.startsWith('10.')",
        "token.sub == 'alice' && token['sub'] == 'alice'",
        "token['https://claims.example/tier'] in ['gold', 'silver']",
        "'admin' in token.roles && size(token.roles) == 2 && token.roles.size() == 2",
        "token.roles[0] == 'admin' && token.roles == ['admin', 'audit']",
        "token.level >= 3 && token.level + 1 == 4 && -token.level < 0 && token.level % 2 == 1",
        "token.ratio * 2.0 == 1.0 && token.level > token.ratio && token.level / 2 == 1",
        "token.verified && token.none == null && token.sub != null",
        "has(token.sub) && !has(token.missing) && !has(token.org.missing)",
        "'sub' in token && !('missing' in token)",
        "token.org.teams.exists(team, team.name == 'red' && team.size > 5)",
        "token.org.teams.all(team, team.size > 3)",
        "token.org.teams.exists_one(team, team.name == 'blue')",
        "token.org.teams.exists(team, token.roles.exists(role, role == 'audit' && team.size == 9))",
        "token.empty.all(x, x == 1) && !token.empty.exists(x, x == 1)",
        "client_certificate.subject.contains('orders') && 'spiffe://mesh/orders' in client_certificate.uris",
        "client_certificate.uris.exists(uri, uri.matches('^spiffe://mesh/[a-z]+$'))",
        "client_certificate.dns_names.size() == 0",
        "request.host.lowerAscii().matches('^api[.]')",
        "now < timestamp('2026-03-01T00:00:00Z') && now + duration('2s') == timestamp('2026-03-01T00:00:00Z')",
        "now.getDayOfWeek() == 6 && now.getHours() == 23 && now.getFullYear() == 2026 && now.getDate() == 28",
        "(now - timestamp('2026-02-28T22:59:58Z')).getMinutes() == 60",
        "request.method == 'GET' ? token.level == 3 : false",
        "string(token.level) == '3' && double(token.level) == 3.0",
        // What decides alone decides, also where the other side has no outcome.
        "token.missing == 1 || true",
        "!(token.missing == 1 && false)",
        // Values of different types are not equal.
        "token.sub != token.level",
    ] {
        assert_eq!(evaluate(text), Ok(true), "{text}");
    }
}

#[test]
fn what_cannot_be_told_is_neither_yes_nor_no() {
    for (text, fault) in [
        ("token.missing == 1", ConditionFault::Missing),
        ("token.roles[2] == 'x'", ConditionFault::Missing),
        ("request.headers['x-none'] == ''", ConditionFault::Missing),
        ("token.sub > 1", ConditionFault::Type),
        ("token.sub.name == 'x'", ConditionFault::Type),
        ("token.sub", ConditionFault::Type),
        ("token.level.startsWith('3')", ConditionFault::Type),
        ("token.sub.all(x, true)", ConditionFault::Type),
        ("9223372036854775807 + token.level > 0", ConditionFault::Arithmetic),
        ("token.level / 0 == 1", ConditionFault::Arithmetic),
        ("token.level % 0 == 1", ConditionFault::Arithmetic),
        ("token.missing == 1 || false", ConditionFault::Missing),
        ("token.roles.all(role, role.x == 1)", ConditionFault::Type),
    ] {
        assert_eq!(evaluate(text), Err(fault), "{text}");
    }
}

#[test]
fn mistakes_have_their_place_and_say_what_would_be_right() {
    for (text, line, column, words) in [
        ("", 1, 1, "leave it out"),
        ("request.method ==", 1, 18, "no CEL expression"),
        ("request.verb == 'GET'", 1, 8, "request.verb"),
        ("true && reqest.method == 'GET'", 1, 9, "there is no `reqest`"),
        ("request.method == 1", 1, 16, "a text and a whole number"),
        ("request.method", 1, 8, "must be true or false, and is a text"),
        ("request.headers['X-Tenant'] == 'a'", 1, 16, "lower case"),
        ("request.headers[token.sub] == 'a'", 1, 22, "written out"),
        ("request == 1", 1, 1, "by its members"),
        ("client_certificate.issuer == 'x'", 1, 19, "client_certificate.issuer"),
        ("request.method.upper() == 'x'", 1, 21, "no function `upper`"),
        ("token.sub.matches(token.pattern)", 1, 24, "written out"),
        ("token.sub.matches('(')", 1, 19, "no regular expression"),
        ("token.roles.map(x, x).size() == 1", 1, 16, "`map` and `filter`"),
        ("token.x.all(a, a.all(b, b.all(c, c == 1)))", 1, 30, "within each other"),
        ("timestamp(token.sub) < now", 1, 16, "written out"),
        ("now.getHours('Europe/Berlin') == 1", 1, 13, "UTC"),
        ("{'a': 1}.size() == 1", 1, 1, "not part of conditions"),
        ("true &&\n  request.path.size() > 'x'", 2, 23, "cannot be put together"),
        ("!request.path", 1, 9, "must be a boolean"),
    ] {
        let error = mistake(text);
        assert!(error.message.contains(words), "{text}: {error:?}");
        assert_eq!((error.line, error.column), (line, column), "{text}: {error:?}");
    }
}

#[test]
fn what_could_cost_too_much_is_refused_or_ends() {
    let nested = format!("{}true{}", "(".repeat(100), ")".repeat(100));
    assert!(mistake(&nested).message.contains("nested"), "{nested}");
    let negated = format!("{}true", "!".repeat(1_000));
    assert!(mistake(&negated).message.contains("nested"), "{negated}");
    let long = format!("token.sub in [{}]", vec!["'a'"; 2_000].join(","));
    assert!(mistake(&long).message.contains("bytes"));
    let wide = vec!["token.a"; 300].join(" || ");
    assert!(mistake(&wide).message.contains("parts"), "{}", mistake(&wide).message);
    assert!(mistake("token.sub.matches('(a{1000}){1000}')").message.contains("regular"));
    // Quantifiers over long claims end at the budget instead of going on.
    let mut sample = Sample::new();
    sample.claims.insert("long".to_owned(), json!(vec![1; 1_000]));
    let condition = Condition::compile("token.long.all(a, token.long.all(b, a == b))").unwrap();
    assert_eq!(condition.evaluate(&sample), Err(ConditionFault::Budget));
}

#[test]
fn what_quantifiers_may_cost_is_told_before_there_is_a_request() {
    let inner = ["(x.a == y.b && y.c != 'd')"; 6].join(" || ");
    let error = mistake(&format!("token.v == 1 ||\n token.a.exists(x, token.b.exists(y, {inner}))"));
    assert!(error.message.contains("where a list has 32 elements"), "{error:?}");
    assert_eq!((error.line, error.column), (2, 16), "{error:?}");
    for fits in [
        "token.a.exists(x, token.b.exists(y, x == y))",
        "token.a.exists(x, x.b.exists(y, y.c == 'd' && y.e.startsWith('f')))",
        "['a', 'b', 'c'].all(x, token.roles.exists(y, y == x))",
        "token.a.exists(x, request.headers.tenant == x)",
    ] {
        assert!(Condition::compile(fits).is_ok(), "{fits}");
    }
}

/// A header as long as a gateway takes, read as often as a list says.
#[test]
fn long_texts_use_up_the_budget() {
    struct Long(Sample);

    impl Facts for Long {
        fn method(&self) -> &str {
            self.0.method()
        }
        fn host(&self) -> &str {
            self.0.host()
        }
        fn path(&self) -> &str {
            self.0.path()
        }
        fn query(&self) -> Option<&str> {
            self.0.query()
        }
        fn scheme(&self) -> &str {
            self.0.scheme()
        }
        fn source_address(&self) -> Option<&str> {
            self.0.source_address()
        }
        fn header(&self, _name: &str) -> Option<String> {
            Some("x".repeat(60_000))
        }
        fn extension(&self, name: &str) -> Option<&str> {
            self.0.extension(name)
        }
        fn path_parameter(&self, name: &str) -> Option<&str> {
            self.0.path_parameter(name)
        }
        fn claims(&self) -> Option<&Map<String, Json>> {
            self.0.claims()
        }
        fn certificate(&self) -> Option<CertificateFacts<'_>> {
            self.0.certificate()
        }
        fn now_seconds(&self) -> i64 {
            self.0.now_seconds()
        }
    }

    let mut sample = Sample::new();
    sample.claims.insert("long".to_owned(), json!(vec!["a"; 100]));
    let long = Long(sample);
    for text in [
        "token.long.all(a, size(request.headers.h) > 0)",
        "token.long.all(a, request.headers.h.lowerAscii() != a)",
        "token.long.all(a, request.headers.h.matches('^x'))",
        "token.long.all(a, request.headers.h.startsWith('x'))",
        "token.long.all(a, request.headers.h + a != a)",
        "token.long.all(a, has(request.headers.h))",
    ] {
        let condition = Condition::compile(text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
        assert_eq!(condition.evaluate(&long), Err(ConditionFault::Budget), "{text}");
    }
    assert_eq!(Condition::compile("request.headers.h.matches('^x+$')").unwrap().evaluate(&long), Ok(true));
}

#[test]
fn path_parameters_are_told() {
    let condition = Condition::compile("request.params.id == '1' || has(request.params.other)").unwrap();
    assert_eq!(condition.path_parameters().collect::<Vec<_>>(), ["id", "other"]);
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z0-9.()'\"!&|=<>?:+ \\[\\]{},-]{0,60}") {
        if let Ok(condition) = Condition::compile(&text) {
            let _ = condition.evaluate(&Sample::new());
        }
    }

    #[test]
    fn no_combination_of_parts_panics(parts in prop::collection::vec(prop::sample::select(vec![
        "token.sub", "token.roles", "token.org", "token.level", "request.method", "now", "1", "'a'", "0.5", "null", "true",
        "==", "!=", "<", "in", "&&", "||", "+", "-", "*", "/", "%", "!", "(", ")", "[0]", ".x", ".size()", "size(",
        ".startsWith('a')", ".all(e, e == 1)", ".exists(e, e == 'admin')", "has(token.sub)", "?", ":",
    ]), 0..12)) {
        if let Ok(condition) = Condition::compile(&parts.join(" ")) {
            let _ = condition.evaluate(&Sample::new());
        }
    }
}
