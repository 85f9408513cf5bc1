//! Pages that browsers come from.

use serde_json::json;

use super::*;

const PAGE: &str = "https://example.com";

#[tokio::test]
async fn only_pages_on_the_list_may_connect() {
    let toml = format!("[auth]\norigins = [\"{PAGE}\", \"http://localhost:5173\"]");
    let node = Node::alone(&toml).await;
    for origin in [PAGE, "http://localhost:5173"] {
        welcome(&node, origin, "/x", &[("Origin", origin)]).await;
    }
    welcome(&node, "no page", "/x", &[]).await;
    for origin in [
        "null",
        "",
        "https://evil.example",
        "http://example.com",
        "https://example.com:8443",
        "https://example.com.evil.example",
        "https://sub.example.com",
        "https://example.com/",
        "http://localhost",
        "https://example.com, https://evil.example",
    ] {
        let headers = [("Origin", origin)];
        refusal(&node, origin, "/x", &headers, FORBIDDEN).await;
    }
    let two = [("Origin", PAGE), ("Origin", "https://evil.example")];
    refusal(&node, "two", "/x", &two, FORBIDDEN).await;
}

#[tokio::test]
async fn apps_and_subdomains_may_connect_where_they_are_listed() {
    let toml = "[auth]\norigins = [\"capacitor://localhost\", \"ionic://localhost\", \"tauri://localhost\", \"null\", \
                \"file://\", \"https://*.example.com\", \"http://[::1]:8100\"]";
    let node = Node::alone(toml).await;
    for origin in [
        "capacitor://localhost",
        "ionic://localhost",
        "tauri://localhost",
        "null",
        "file://",
        "https://app.example.com",
        "https://APP.example.com:443",
        "http://[::1]:8100",
    ] {
        welcome(&node, origin, "/x", &[("Origin", origin)]).await;
    }
    for origin in [
        "capacitor://example",
        "electron://localhost",
        "https://example.com",
        "https://a.b.example.com",
        "http://app.example.com",
        "http://[::1]",
    ] {
        refusal(&node, origin, "/x", &[("Origin", origin)], FORBIDDEN).await;
    }
    let page = [("Origin", "https://a.example.com")];
    let stream = By::EventStream.knock(&node, "/x", &page).await;
    let allowed = stream.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://a.example.com"));
}

#[tokio::test]
async fn without_a_list_any_page_may_connect() {
    let mut node = Node::alone("").await;
    for origin in ["https://evil.example", "null"] {
        welcome(&node, origin, "/x", &[("Origin", origin)]).await;
    }
    let log = node.process().stderr();
    assert!(log.contains("pages of any origin may connect"), "{log}");
}

#[tokio::test]
async fn a_cookie_counts_only_from_a_page() {
    let toml = format!("token_from = [\"cookie\", \"query\"]\norigins = [\"{PAGE}\"]");
    let node = by_token(&toml).start().await;
    let token = token(json!({"sub": "ann"}));
    let cookie = format!("unisono_token={token}");
    let cookie = ("Cookie", cookie.as_str());

    welcome(&node, "a page", "/x", &[cookie, ("Origin", PAGE)]).await;
    refusal(&node, "no page", "/x", &[cookie], FORBIDDEN).await;
    let own = [cookie, ("Sec-Fetch-Site", "same-origin")];
    welcome(&node, "a page of the same origin", "/x", &own).await;
    let other = [cookie, ("Sec-Fetch-Site", "same-site")];
    refusal(&node, "a page beside it", "/x", &other, FORBIDDEN).await;
    let foreign = [cookie, ("Origin", "https://evil.example")];
    refusal(&node, "another page", "/x", &foreign, FORBIDDEN).await;
    let target = format!("/x?token={token}");
    welcome(&node, "no page, no cookie", &target, &[]).await;
}

#[tokio::test]
async fn a_page_of_another_origin_may_read_a_stream_that_it_was_given() {
    let toml = format!("[auth]\norigins = [\"{PAGE}\"]");
    let node = Node::alone(&toml).await;
    let response = By::EventStream
        .knock(&node, "/x", &[("Origin", PAGE)])
        .await;
    assert_eq!(response.status, 200);
    let header = |name| response.header(name);
    assert_eq!(header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(header("access-control-allow-credentials"), Some("true"));
    assert_eq!(header("vary"), Some("Origin"));
}
