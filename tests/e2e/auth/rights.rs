//! What clients may do: the claims of their tokens, and the rules of rooms.

use serde_json::{Value, json};
use unisono_tests::{Client, Sandbox};

use super::*;

const RULES: &str = r#"
[[rooms]]
pattern = "/lobby"
publish = "anyone"
[[rooms]]
pattern = "/members/{id}"
who = "users"
publish = "anyone"
[[rooms]]
pattern = "/secret/{id}"
who = "granted"
publish = "anyone"
[[rooms]]
pattern = "/quiet"
publish = "none"
emit = false
client_events = "deny"
[[rooms]]
pattern = "/by-hand"
join = "none"
[[rooms]]
pattern = "/by-url"
join = "url"
"#;

async fn cluster() -> Sandbox {
    let auth = format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\n{RULES}");
    Sandbox::config().toml(&auth).start().await
}

async fn come(sandbox: &Sandbox, i: usize, path: &str, claims: Value) -> Client {
    sandbox
        .client(i, &format!("{path}?token={}", token(claims)))
        .await
}

#[tokio::test]
async fn a_user_is_told_of_on_every_node() {
    let sandbox = cluster().await;
    let target = |claims| format!("/lobby?token={}", token(claims));
    let mut guests = vec![];
    for (i, (claims, user)) in [
        (json!({"sub": "ann"}), json!("ann")),
        (json!({"sub": 7}), json!("7")),
        (json!({}), Value::Null),
    ]
    .into_iter()
    .enumerate()
    {
        for by in BOTH {
            let guest = by
                .enter(&sandbox.nodes[i], &target(claims.clone()), &[])
                .await;
            guests.push((guest, user.clone()));
        }
    }

    for i in 0..3 {
        let members = sandbox.api(i).members("/lobby").await;
        let members = members["sockets"].as_array().expect("members").clone();
        for (guest, user) in &guests {
            assert_eq!(guest.told(sandbox.api(i)).await["user"], *user);
            let member = json!({"id": guest.id, "user": user});
            assert!(members.contains(&member), "no {member} in {members:?}");
        }
    }
    let whom = json!({"user": "ann", "code": 4001});
    let answer = sandbox.api(2).post("disconnect", whom).await.ok();
    assert_eq!(answer["disconnected"], 2, "{answer}");
    for (guest, _) in &mut guests[..2] {
        assert_eq!(guest.close().await.0, 4001);
    }
}

#[tokio::test]
async fn rooms_are_for_whom_rule_and_token_let_in() {
    let sandbox = cluster().await;
    let ann = |rooms: &[&str]| json!({"sub": "ann", "rooms": rooms});
    for (claims, room, good) in [
        (json!({}), "/lobby", true),
        (json!({}), "/members/1", false),
        (json!({}), "/secret/1", false),
        (json!({"sub": "ann"}), "/members/1", true),
        (json!({"sub": "ann"}), "/secret/1", false),
        (ann(&["/lobby", "/secret/1"]), "/secret/1", true),
        (ann(&["/lobby", "/secret/1"]), "/secret/2", false),
        (ann(&["/lobby", "/secret/1"]), "/members/1", false),
        (ann(&["/lobby", "/secret/{id}"]), "/secret/2", true),
        (ann(&["/{path...}"]), "/secret/1", true),
        (ann(&["/{path...}"]), "/members/1", true),
        (json!({"rooms": ["/{path...}"]}), "/secret/1", true),
        (json!({"rooms": ["/{path...}"]}), "/members/1", false),
    ] {
        let what = format!("{claims} {room}");
        let target = format!("{room}?token={}", token(claims.clone()));
        match good {
            true => welcome(&sandbox.nodes[0], &what, &target, &[]).await,
            false => drop(refusal(&sandbox.nodes[0], &what, &target, &[], FORBIDDEN).await),
        }
        let mut client = come(&sandbox, 1, "/lobby", claims).await;
        let publication = json!({"room": room, "event": "a"});
        let outcomes = [
            client.request("unisono:publish", publication).await,
            client.request("unisono:join", json!({"room": room})).await,
        ];
        for outcome in outcomes {
            match outcome {
                Ok(_) => assert!(good, "{what}"),
                Err(refusal) => {
                    assert!(!good && refusal.code == "forbidden", "{what}: {refusal:?}");
                }
            }
        }
        if !good {
            client.send_text(json!({"channel": room}).to_string()).await;
            client.expect_error("forbidden").await;
        }
    }
    let none = format!("/lobby?token={}", token(ann(&[])));
    refusal(&sandbox.nodes[0], "no room at all", &none, &[], FORBIDDEN).await;
}

#[tokio::test]
async fn what_is_refused_reaches_nobody() {
    let sandbox = cluster().await;
    let mut member = come(&sandbox, 0, "/secret/1", json!({"rooms": ["/secret/1"]})).await;
    let mut stranger = come(&sandbox, 1, "/lobby", json!({"sub": "bob"})).await;

    for room in ["/secret/1", "/nowhere"] {
        let publication = json!({"room": room, "event": "psst"});
        let code = stranger.refused("unisono:publish", publication).await;
        assert!(matches!(&*code, "forbidden" | "bad_room"), "{code}");
    }
    sandbox.api(2).publish("/secret/1", "fence", json!(1)).await;

    member.expect("fence").await;
}

#[tokio::test]
async fn the_application_may_let_in_whom_no_token_would() {
    let sandbox = cluster().await;
    let mut client = come(&sandbox, 0, "/lobby", json!({"rooms": ["/lobby"]})).await;

    assert_eq!(
        sandbox.api(1).join(&client.id, "/secret/1").await,
        "delivered"
    );
    sandbox.api(2).publish("/secret/1", "hello", json!(1)).await;
    client.expect("hello").await;
    client.publish("/secret/1", "mine", json!(1)).await;
    client.leave("/secret/1").await;
    let again = json!({"room": "/secret/1"});
    assert_eq!(client.refused("unisono:join", again).await, "forbidden");
}

#[tokio::test]
async fn a_missing_right_is_missed_by_its_verb_only() {
    let node = by_token("").start().await;
    let all = ["join", "publish", "emit", "send"];
    let lists = all.map(|without| {
        let rights = all.into_iter().filter(|right| *right != without);
        rights.collect::<Vec<_>>()
    });
    let lists = lists.into_iter().chain([vec![], all.to_vec()]);
    for rights in lists {
        let claims = json!({"sub": "ann", "rights": rights});
        let mut client = node.client(&format!("/x?token={}", token(claims))).await;
        let me = client.id.clone();
        for (right, event, data) in [
            ("join", "unisono:join", json!({"room": "/y"})),
            (
                "publish",
                "unisono:publish",
                json!({"room": "/x", "event": "a"}),
            ),
            (
                "publish",
                "unisono:publish",
                json!({"room": "/y", "event": "a"}),
            ),
            (
                "emit",
                "unisono:emit",
                json!({"to": "nobody", "event": "a"}),
            ),
            ("send", "hello", json!(me)),
        ] {
            let outcome = client.request(event, data).await;
            let what = format!("{rights:?} {event}: {outcome:?}");
            match outcome {
                Ok(_) => assert!(rights.contains(&right), "{what}"),
                Err(refusal) => {
                    assert!(!rights.contains(&right), "{what}");
                    assert_eq!(refusal.code, "forbidden", "{what}");
                }
            }
        }
        client.ack("unisono:ping", json!(1)).await;
        client.leave("/x").await;
    }
}

#[tokio::test]
async fn no_token_is_above_the_rule_of_a_room() {
    let node = by_token(RULES).start().await;
    let token = token(
        json!({"sub": "ann", "rooms": ["/{path...}"], "rights": ["join", "publish", "emit", "send"]}),
    );
    let mut client = node.client(&format!("/quiet?token={token}")).await;
    for (event, data) in [
        ("unisono:publish", json!({"room": "/quiet", "event": "a"})),
        ("unisono:emit", json!({"to": "nobody", "event": "a"})),
        ("hello", json!(1)),
        ("unisono:join", json!({"room": "/by-hand"})),
        ("unisono:join", json!({"room": "/by-url"})),
    ] {
        assert_eq!(client.refused(event, data).await, "forbidden", "{event}");
    }
    let nowhere = json!({"room": "/nowhere"});
    assert_eq!(client.refused("unisono:join", nowhere).await, "bad_room");
    welcome(&node, "by its URL", &format!("/by-url?token={token}"), &[]).await;
    refusal(&node, "by hand only", "/by-hand", &[], FORBIDDEN).await;
}

#[tokio::test]
async fn where_nobody_is_anybody_rooms_for_users_are_empty() {
    let node = Node::alone(RULES).await;
    welcome(&node, "for all", "/lobby", &[]).await;
    for room in ["/members/1", "/secret/1"] {
        refusal(&node, room, room, &[], FORBIDDEN).await;
    }
    let mut client = node.client("/lobby").await;
    let refresh = json!({"token": token(json!({}))});
    assert_eq!(
        client.refused("unisono:refresh", refresh).await,
        "forbidden"
    );
}

#[tokio::test]
async fn what_is_cheap_is_asked_first() {
    let origins = format!("origins = [\"https://example.com\"]\n{RULES}");
    let node = by_token(&origins).start().await;
    let foreign = [("Origin", "https://evil.example")];
    let no_room = (404, "no_such_room");
    refusal(&node, "no such room", "/nowhere", &foreign, no_room).await;
    refusal(&node, "not by its URL", "/by-hand", &foreign, FORBIDDEN).await;
    let message = refusal(&node, "the origin", "/secret/1", &foreign, FORBIDDEN).await;
    assert!(message.contains("origin"), "{message}");
    refusal(&node, "the token", "/secret/1", &[], UNAUTHORIZED).await;
    let target = format!("/secret/1?token={}", token(json!({"sub": "ann"})));
    let message = refusal(&node, "the room", &target, &[], FORBIDDEN).await;
    assert!(message.contains("room"), "{message}");
}
