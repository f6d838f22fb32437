use super::*;

fn normalised(target: &str) -> Result<String, Reason> {
    normalise(target).map(|path| path.as_str().to_owned())
}

#[test]
fn every_character_gets_its_only_form() {
    for (target, expected) in [
        ("/", "/"),
        ("/?q=/../%2f", "/"),
        ("/orders/17", "/orders/17"),
        ("/orders/", "/orders"),
        ("/orders?x=1", "/orders"),
        ("/%6frders/%7Ejo", "/orders/~jo"),
        ("/users/%40me", "/users/@me"),
        ("/a%20b/%c3%a9", "/a%20b/%C3%A9"),
        ("/100%25", "/100%25"),
        ("/a%3fb", "/a%3Fb"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a..b", "/a..b"),
    ] {
        assert_eq!(normalised(target).as_deref(), Ok(expected), "{target}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for target in [
        "/a/../b",
        "/..",
        "/.",
        "/a/.",
        "/a/..",
        "/a/../",
        "/a/%2e%2e/b",
        "/a/.%2E",
        "/%2e",
        "/a//b",
        "//",
        "//a",
        "/a//",
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a%0a",
        "/a%7f",
        "/a;x=1",
        "/a%3bx",
        "/orders/%252%65%252%65/admin",
        "/%25%32%65",
        "/a%252fb",
        "/%252e",
        "/%25252f",
        "/a%c0%af",
        "/a%ff",
        "/admin.",
        "/admin%20",
        "/admin%2e/x",
        "/...",
    ] {
        assert_eq!(normalised(target), Err(Reason::AmbiguousPath), "{target}");
    }
}

#[test]
fn what_is_no_path_is_refused() {
    for target in [
        "",
        "*",
        "a",
        "http://h/a",
        "?",
        "/a#b",
        "/a?x#y",
        "/a b",
        "/a\n",
        "/é",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%u002f",
        "/{a}",
    ] {
        assert_eq!(normalised(target), Err(Reason::MalformedRequest), "{target}");
    }
    assert_eq!(normalised(&"/a".repeat(MAX_PATH_BYTES)), Err(Reason::MalformedRequest));
}

#[test]
fn a_path_that_is_normal_already_is_borrowed() {
    assert!(matches!(normalise("/orders/17?x"), Ok(NormalisedPath(Cow::Borrowed("/orders/17")))));
}

#[test]
fn segments_lie_between_slashes() {
    let segments = |target| normalise(target).unwrap().segments().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(segments("/a/b/"), ["a", "b"]);
    assert!(segments("/").is_empty());
}
