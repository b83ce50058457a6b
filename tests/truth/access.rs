//! Who gets at a snapshot, from a request's API key to its deletion: the whole gateway, its own listeners.

use crate::gateway::{Answer, Client, Gateway, Request, Setup, Sims, until};

const TOKENS: &str = r#"[{ name = "ops", token = "the-operators-token", scope = ["read", "delete"] }]"#;
const OPS: (&str, &str) = ("authorization", "Bearer the-operators-token");

fn ask(gateway: &Gateway, request: Request, (name, value): (&str, &str)) -> Answer {
    Client::to(gateway.admin).ask(&request.with(name, value))
}

fn look(gateway: &Gateway, id: &str, credential: (&str, &str)) -> Answer {
    ask(gateway, Request::get(format!("/v1/snapshots/{id}")), credential)
}

#[test]
fn a_request_is_its_tenants_until_somebody_deletes_it() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).set("lookup.tokens", TOKENS).start();
    let mine = gateway.ask(&Request::chat().with("authorization", "Bearer sk-mine")).id();
    let same = gateway.ask(&Request::chat().with("x-api-key", "sk-mine")).id();
    let others = gateway.ask(&Request::chat().with("x-api-key", "sk-other")).id();
    let stored =
        |id: &str| until("it is stored", || look(&gateway, id, OPS).text().contains(r#""stored":true"#).then_some(()));
    [&mine, &same, &others].into_iter().for_each(|id| stored(id));

    for (id, key, status) in
        [(&mine, "sk-mine", 200), (&same, "sk-mine", 200), (&others, "sk-mine", 404), (&mine, "sk-other", 404)]
    {
        assert_eq!(look(&gateway, id, ("x-api-key", key)).status, status, "{key} {id}");
    }
    let own = look(&gateway, &mine, ("authorization", "Bearer sk-mine"));
    assert!(!own.text().contains("127.0.0.1"), "{}", own.text());
    let document: serde_json::Value = serde_json::from_slice(&own.body).expect("a document is JSON");
    let tenant = document["request"]["tenant"].as_str().expect("it bore a key").to_owned();

    let path = format!("/v1/snapshots?tenant={tenant}");
    assert_eq!(ask(&gateway, Request::delete(&path), ("x-api-key", "sk-mine")).status, 401);
    let deleted = ask(&gateway, Request::delete(&path), OPS);
    let answer: serde_json::Value = serde_json::from_slice(&deleted.body).expect("the answer is JSON");
    assert_eq!((deleted.status, &answer["deleted"], &answer["by"]), (200, &2.into(), &"ops".into()), "{answer}");
    for (id, credential, status) in
        [(&mine, OPS, 410), (&same, OPS, 410), (&others, OPS, 200), (&mine, ("x-api-key", "sk-mine"), 404)]
    {
        assert_eq!(look(&gateway, id, credential).status, status, "{id} {credential:?}");
    }
    let one = ask(&gateway, Request::delete(format!("/v1/snapshots/{others}")), OPS);
    assert_eq!((one.status, look(&gateway, &others, OPS).status), (200, 410), "{}", one.text());
    assert_eq!(ask(&gateway, Request::delete(format!("/v1/snapshots/{others}")), OPS).status, 404, "it is gone");
}

#[test]
fn a_name_is_a_tenant_on_both_listeners_for_a_trusted_proxy_and_nobody_else() {
    let sims = Sims::one();
    let start = |trusted: &str| {
        let setup = Setup::before(sims.addresses()).set("lookup.tokens", TOKENS).set("tenant.header", "x-tenant");
        setup.set("tenant.trusted", trusted).set("tenant.secret", "one-for-both-of-them").start()
    };
    let (key, name, other) = (("x-api-key", "sk-mine"), ("x-tenant", "acme"), ("x-tenant", "evil"));
    let sent = |gateway: &Gateway, headers: &[(&str, &str)]| {
        let request = headers.iter().fold(Request::chat(), |request, (name, value)| request.with(name, value));
        let id = gateway.ask(&request).id();
        let document: serde_json::Value =
            serde_json::from_slice(&look(gateway, &id, OPS).body).expect("a document is JSON");
        (id, document["request"]["tenant"].as_str().map(str::to_owned))
    };

    let trusting = start("10.0.0.0/8,127.0.0.1");
    let ((named, by_name), (_, by_both), (keyed, by_key)) =
        (sent(&trusting, &[name]), sent(&trusting, &[name, key]), sent(&trusting, &[key]));
    assert!(by_name.is_some() && by_name == by_both && by_key.is_some(), "{by_name:?} {by_both:?} {by_key:?}");
    for (id, header, status) in [(&named, name, 200), (&named, other, 404), (&keyed, name, 404), (&keyed, key, 200)] {
        assert_eq!(look(&trusting, id, header).status, status, "{header:?}");
    }

    let wary = start("10.0.0.0/8");
    let (named, by_nobody) = sent(&wary, &[name]);
    assert_eq!((by_nobody, sent(&wary, &[name, key]).1), (None, by_key), "who can connect can send a header");
    assert_eq!(look(&wary, &named, name).status, 401);
}

#[test]
fn no_request_names_its_own_target() {
    let sims = Sims::one();
    let gateway = Setup::before(sims.addresses()).start();
    let body = r#"{"model":"llama-3.1-8b","messages":[{"role":"user","content":"hello"}]}"#;
    for (path, name, value) in [
        ("/v1/chat/completions", "target-pod", "127.0.0.1:9"),
        ("/v1/chat/completions", "x-forwarded-host", "127.0.0.1:9"),
    ] {
        let answer = gateway.ask(&Request::post(path, body).with(name, value));
        assert_eq!((answer.status, answer.header("target-pod")), (200, Some("t0")), "{path} {name}: {}", answer.text());
    }
    let answer = gateway.ask(&Request::post("http://127.0.0.1:9/v1/chat/completions", body));
    assert_eq!(
        (answer.status, answer.header("target-pod")),
        (400, None),
        "not the host it was sent to: {}",
        answer.text()
    );
}
