//! A real browser: its own event streams, and the chat page.

use serde_json::{Value, json};
use unisono_tests::{Browser, Nginx, Node, Page, Sandbox, eventually};

/// Opens an event stream at this URL, and keeps what comes of it in `seen`: a list of `[what, when, message]`.
async fn listen(page: &mut Page, url: &str) {
    let script = format!(
        "window.seen = [];
         window.source = new EventSource({});
         source.onmessage = (event) => seen.push(['message', Date.now(), JSON.parse(event.data)]);
         source.onerror = () => seen.push(['error', Date.now(), source.readyState]);
         0",
        json!(url)
    );
    page.eval(&script).await;
}

/// Waits for the `count`th event of that name, and returns when it came, and it.
async fn heard(page: &mut Page, event: &str, count: usize) -> (u64, Value) {
    let script = format!(
        "seen.filter((entry) => entry[0] === 'message' && entry[2].event === {})[{}]",
        json!(event),
        count - 1
    );
    let what = format!("the page has heard {event} {count} times");
    let mut entry = eventually(&what, async || {
        let entry = page.eval(&script).await;
        if entry.is_array() {
            Ok(entry)
        } else {
            Err(page.eval("seen").await)
        }
    })
    .await;
    (entry[1].as_u64().expect("a time"), entry[2].take())
}

#[tokio::test]
async fn an_event_source_hears_what_is_published_on_another_node() {
    let sandbox = Sandbox::start(2).await;
    let mut browser = Browser::start().await;
    let base = sandbox.api(0).base();
    let mut page = browser.open(&format!("{base}/")).await;

    listen(&mut page, "/chat-rooms/1").await;
    let open = heard(&mut page, "unisono:open", 1).await.1;
    assert_eq!(open["data"]["room"], "/chat-rooms/1");
    let data = json!({"text": "é😀\nline\r\n", "html": "</script>"});
    let api = sandbox.api(1);
    api.publish("/chat-rooms/1", "news", data.clone()).await;
    let news = heard(&mut page, "news", 1).await.1;
    let expected = json!({"event": "news", "data": data, "room": "/chat-rooms/1"});
    assert_eq!(news, expected);

    let id = open["data"]["id"].as_str().expect("an id");
    assert_eq!(api.emit(id, "psst", json!(1)).await, "delivered");
    heard(&mut page, "psst", 1).await;
    page.close().await;
    eventually("the socket went with its page", async || {
        api.members("/chat-rooms/1").await["count"] == 0
    })
    .await;
}

#[tokio::test]
async fn an_event_source_comes_back_when_it_was_told_to() {
    let mut sandbox = Sandbox::config()
        .toml("[drain]\ndelay = \"0s\"\nwindow = \"0s\"\nreconnect_max = \"400ms\"")
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let mut browser = Browser::start().await;
    let base = nginx.api().base();
    let mut page = browser.open(&format!("{base}/")).await;
    listen(&mut page, "/chat-rooms/1").await;
    let open = heard(&mut page, "unisono:open", 1).await.1;
    let ids = sandbox.ids().await;
    let serving = ids.iter().position(|id| open["data"]["node"] == **id);
    let mut leaving = sandbox.nodes.remove(serving.expect("one of the nodes"));

    leaving.terminate();

    let (closed, closing) = heard(&mut page, "unisono:closing", 1).await;
    let (back, open) = heard(&mut page, "unisono:open", 2).await;
    assert_eq!(closing["data"]["code"], 1012);
    assert_ne!(open["data"]["node"], leaving_id(&ids, serving));
    let told = closing["data"]["reconnect_in_ms"].as_u64();
    let told = told.expect("a time to stay away");
    // By itself, Chromium would come back after 3 s.
    let away = back - closed;
    assert!(
        (told..2500).contains(&(away + 1)),
        "told {told} ms, away for {away} ms"
    );
    assert_eq!(leaving.process().exited().await.code(), Some(0));
    sandbox.all_know_each_other().await;
    let api = sandbox.api(0);
    api.publish("/chat-rooms/1", "after", Value::Null).await;
    heard(&mut page, "after", 1).await;
}

fn leaving_id(ids: &[String], serving: Option<usize>) -> Value {
    json!(serving.map(|i| &ids[i]))
}

#[tokio::test]
async fn a_page_of_another_origin_may_listen() {
    let pages = Node::alone("").await;
    let rooms = Node::alone("").await;
    let mut browser = Browser::start().await;
    let mut page = browser.open(&format!("{}/", pages.api().base())).await;

    listen(&mut page, &format!("{}/news", rooms.api().base())).await;

    heard(&mut page, "unisono:open", 1).await;
    rooms.api().publish("/news", "headline", json!(1)).await;
    let headline = heard(&mut page, "headline", 1).await.1;
    assert_eq!(headline["data"], 1);
}

#[tokio::test]
async fn two_tabs_on_two_nodes_chat() {
    let sandbox = Sandbox::start(2).await;
    let mut browser = Browser::start().await;
    let page = async |browser: &mut Browser, i: usize| {
        let base = sandbox.api(i).base();
        let mut page = browser.open(&format!("{base}/?room=/chat-rooms/1")).await;
        eventually("the page is connected", async || {
            let state = "document.getElementById('state').textContent";
            let state = page.eval(state).await;
            if state == "connected" {
                Ok(())
            } else {
                Err(state)
            }
        })
        .await;
        page
    };
    let mut one = page(&mut browser, 0).await;
    let mut two = page(&mut browser, 1).await;
    let hostile = "<img src=x onerror=\"window.harmed = true\"><b>bold</b>";

    for text in ["hello from one", hostile] {
        say(&mut one, text).await;
        eventually("the other page shows it", async || {
            let rows = rows(&mut two).await;
            let shown = rows
                .iter()
                .any(|row| row.as_str().is_some_and(|row| row.ends_with(text)));
            if shown { Ok(()) } else { Err(rows) }
        })
        .await;
        eventually("it is acknowledged", async || {
            one.eval("document.querySelectorAll('#log li.mine.waiting').length")
                .await
                == 0
        })
        .await;
    }
    say(&mut two, "hello from two").await;
    eventually("the first page shows the answer", async || {
        let rows = rows(&mut one).await;
        if rows.iter().any(|row| {
            row.as_str()
                .is_some_and(|row| row.ends_with("hello from two"))
        }) {
            Ok(())
        } else {
            Err(rows)
        }
    })
    .await;

    for page in [&mut one, &mut two] {
        let elements = "document.querySelectorAll('#log img, #log li b b').length";
        assert_eq!(page.eval(elements).await, 0);
        assert_eq!(page.eval("window.harmed === undefined").await, true);
    }
}

/// Types a message into the chat page and sends it.
async fn say(page: &mut Page, text: &str) {
    let script = format!(
        "document.getElementById('text').value = {};
         document.getElementById('say').requestSubmit(); 0",
        json!(text)
    );
    page.eval(&script).await;
}

async fn rows(page: &mut Page) -> Vec<Value> {
    let rows = "[...document.querySelectorAll('#log li')].map((row) => row.textContent)";
    match page.eval(rows).await {
        Value::Array(rows) => rows,
        other => panic!("no rows: {other}"),
    }
}
