//! `GET /tail`: what passes, on all nodes, as lines of JSON for as long as somebody reads them. The node that is
//! asked takes from every node what has gathered there, itself included, again and again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::http::{Method, StatusCode, Version};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use cluster::CallError;
use futures_util::future::join_all;
use futures_util::stream::unfold;
use proto::NodeId;
use proto::envelope::{Answer, Request, TailPage, TailQuery};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use url::form_urlencoded;

use super::{ApiError, Handle};
use crate::tail::{DATA_BYTES, DATA_BYTES_FULL, FILTERS_MAX, Filter, LEASE, TAILS_MAX};
use crate::unisono::Unisono;

const NDJSON: &str = "application/x-ndjson";

/// How long a node may wait for something to tell; less, where calls have less time.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// How often to look for new nodes, and to send an empty line, which finds out that nobody reads.
const TICK: Duration = Duration::from_secs(1);

/// Pages that may wait for the client. Then nothing more is taken, and what comes is counted where it gathers.
const PAGES_WAITING: usize = 8;

pub(super) async fn tail(unisono: Handle, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let query = query(&unisono, request.query_string())?;
    if request.method() == Method::HEAD {
        return Ok(HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, NDJSON))
            .insert_header((CACHE_CONTROL, "no-store"))
            .finish());
    }
    let place = Arc::clone(&unisono.shared.tails.places).try_acquire_owned();
    let place = place.map_err(|_| ApiError {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "busy",
        message: format!("there are {TAILS_MAX} tails on this node already"),
    })?;
    let (pages, receiver) = mpsc::channel(PAGES_WAITING);
    let watch = Watch {
        unisono: Unisono::clone(&unisono),
        query,
        pages,
    };
    actix_rt::spawn(watch.run(place));
    let lines = unfold(receiver, async |mut pages| {
        let page = pages.recv().await?;
        Some((Ok::<Bytes, actix_web::Error>(page), pages))
    });
    let mut response = HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, NDJSON))
        .insert_header((CACHE_CONTROL, "no-store"))
        // nginx would gather lines before it passes them on.
        .insert_header(("X-Accel-Buffering", "no"))
        .force_close()
        .streaming(lines);
    if request.version() < Version::HTTP_11 {
        response.head_mut().no_chunking(true);
    }
    Ok(response)
}

fn query(unisono: &Unisono, text: &str) -> Result<TailQuery, ApiError> {
    let mut query = TailQuery {
        id: rand::random(),
        filters: Vec::new(),
        data_bytes: DATA_BYTES,
        wait: WAIT_MAX.min(unisono.shared.config.cluster.call_timeout / 2),
    };
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        match (&*name, &*value) {
            ("filter", filter) => {
                let read = filter.parse::<Filter>();
                read.map_err(|error| ApiError::bad(error.to_string()))?;
                query.filters.push(filter.to_owned());
            }
            ("full", "true") => query.data_bytes = DATA_BYTES_FULL,
            ("full", "false") => query.data_bytes = DATA_BYTES,
            ("full", _) => return Err(ApiError::bad("`full` is true or false".to_owned())),
            (name, _) => return Err(ApiError::bad(format!("unknown field `{name}`"))),
        }
    }
    if query.filters.len() > FILTERS_MAX {
        return Err(ApiError::bad(format!("at most {FILTERS_MAX} filters")));
    }
    Ok(query)
}

/// One who watches.
#[derive(Clone)]
struct Watch {
    unisono: Unisono,
    query: TailQuery,
    pages: mpsc::Sender<Bytes>,
}

/// What a node says to a look.
enum Look {
    Page(TailPage),
    /// It takes no more leases.
    Refused,
    Gone,
    Silent,
}

impl Watch {
    /// Lasts until the client is gone, or takes nothing for too long, which the connection sees to; or this node is about
    /// to stop.
    async fn run(self, _place: OwnedSemaphorePermit) {
        let pages = self.pages.clone();
        let mut doors = self.unisono.shared.doors_closed.subscribe();
        tokio::select! {
            () = pages.closed() => {}
            _ = doors.wait_for(|closed| *closed) => {}
            () = self.follow_all() => {}
        }
    }

    async fn follow_all(self) {
        let mut known = HashSet::new();
        let mut followers = JoinSet::new();
        let nodes = self.nodes().await;
        let first = join_all(nodes.iter().map(|node| self.look(*node, Duration::ZERO))).await;
        let mut missing = Vec::new();
        for (node, look) in nodes.iter().zip(first) {
            match look {
                Look::Page(page) => {
                    known.insert(*node);
                    followers.spawn_local(self.clone().follow(*node, Some(page)));
                }
                _ => missing.push(node.to_string()),
            }
        }
        let begun = json!({"kind": "tail", "nodes": {"reached": known.len(), "missing": missing}});
        if self.say(&begun).await.is_err() {
            return;
        }
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                Some(ended) = followers.join_next() => {
                    if let Ok(node) = ended {
                        known.remove(&node);
                    }
                }
                _ = tick.tick() => {
                    for node in self.nodes().await {
                        if known.insert(node) {
                            followers.spawn_local(self.clone().follow(node, None));
                        }
                    }
                    // Where the queue is full, there is somebody, or the connection will say so.
                    let _ = self.pages.try_send(Bytes::from_static(b"\n"));
                }
            }
        }
    }

    async fn nodes(&self) -> Vec<NodeId> {
        let shared = &self.unisono.shared;
        let peers = shared.cluster.peers().await;
        let peers = peers.into_iter().map(|peer| peer.id);
        std::iter::once(shared.node).chain(peers).collect()
    }

    /// Passes on what a node tells, until it is gone, or the client is.
    async fn follow(self, node: NodeId, first: Option<TailPage>) -> NodeId {
        let named = node.to_string();
        let mut met = first.is_some();
        let mut seen = 0;
        let mut next = first.map(Look::Page);
        loop {
            let look = match next.take() {
                Some(look) => look,
                None => self.look(node, self.query.wait).await,
            };
            let told = match look {
                Look::Page(page) => {
                    if !std::mem::replace(&mut met, true) {
                        let up = self.say(&json!({"kind": "up", "node": named})).await;
                        if up.is_err() {
                            return node;
                        }
                    }
                    let shown = page.lines.len() as u64;
                    // A lease that began anew counts anew.
                    let before = if page.seen < seen { 0 } else { seen };
                    let missed = page.seen.saturating_sub(before + shown);
                    seen = page.seen;
                    self.tell_and_renew(page.lines, missed, node).await
                }
                Look::Gone | Look::Refused if met => {
                    let _ = self.say(&json!({"kind": "down", "node": named})).await;
                    return node;
                }
                Look::Gone | Look::Refused => return node,
                Look::Silent => {
                    tokio::time::sleep(self.query.wait).await;
                    Ok(())
                }
            };
            if told.is_err() {
                return node;
            }
        }
    }

    async fn look(&self, node: NodeId, wait: Duration) -> Look {
        let query = TailQuery {
            wait,
            ..self.query.clone()
        };
        let shared = &self.unisono.shared;
        if node == shared.node {
            let tails = Arc::clone(&shared.tails);
            let page = tails.take_here(query).await;
            return page.map_or(Look::Refused, Look::Page);
        }
        match shared.cluster.call(node, Request::Tail(query), None).await {
            Ok(Answer::Tail(page)) => Look::Page(page),
            Ok(_) | Err(CallError::Unsupported) => Look::Refused,
            Err(CallError::NodeGone) => Look::Gone,
            Err(CallError::Timeout) => Look::Silent,
        }
    }

    /// Tells, for as long as the reader takes. Meanwhile the lease is renewed, which would end with the count of what was
    /// missed; the lines of those looks count as missed, as the next page shows by the number of all.
    async fn tell_and_renew(
        &self,
        lines: Vec<Bytes>,
        missed: u64,
        node: NodeId,
    ) -> Result<(), Closed> {
        let named = node.to_string();
        let mut telling = std::pin::pin!(self.tell(lines, missed, &named));
        loop {
            tokio::select! {
                told = &mut telling => return told,
                () = tokio::time::sleep(LEASE / 3) => {
                    self.look(node, Duration::ZERO).await;
                }
            }
        }
    }

    async fn tell(&self, lines: Vec<Bytes>, missed: u64, node: &str) -> Result<(), Closed> {
        if !lines.is_empty() {
            let mut page = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
            for line in lines {
                page.extend_from_slice(&line);
                page.push(b'\n');
            }
            self.pages.send(page.into()).await.map_err(|_| Closed)?;
        }
        if missed > 0 {
            self.say(&json!({"kind": "missed", "node": node, "count": missed}))
                .await?;
        }
        Ok(())
    }

    async fn say(&self, line: &Value) -> Result<(), Closed> {
        let line = format!("{line}\n");
        self.pages.send(line.into()).await.map_err(|_| Closed)
    }
}

/// Nobody reads any more.
struct Closed;
