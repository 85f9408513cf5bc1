//! Messages to sockets, rooms and everybody.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use proto::SocketId;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::connection::Api;
use super::list::{note_missing, text};
use super::outcome::{Done, Failure, Outcome};
use super::print;
use crate::textfile;

#[derive(Args)]
#[command(
    override_usage = "unisono emit [OPTIONS] <ID>... <EVENT> [DATA]\n       \
        unisono emit [OPTIONS] --user <NAME> <EVENT> [DATA]\n       \
        unisono emit [OPTIONS] <ID>... --text <TEXT>",
    allow_negative_numbers = true,
    after_help = "Arguments:\n  \
        <ID>...  The ids of sockets\n  \
        <EVENT>  The name of the event\n  \
        [DATA]   Its data: JSON, or `-` for standard input\n\n\
        Examples:\n  \
        unisono emit 9f1c2d3e-4b5a-8001-9c3d-0123456789ab 'new message' '{\"text\":\"hi\"}'\n  \
        unisono emit --user alice reload\n  \
        date +'\"%c\"' | unisono emit --user alice time -\n  \
        unisono emit --user alice --text 'a bare text frame'\n\n\
        Exit status: 0 when every socket got it, 1 when not, 64 wrong use."
)]
pub struct Emit {
    /// The ids of sockets, then the event and its data: JSON, or `-` for standard input
    #[arg(value_name = "ID... EVENT [DATA]", hide = true)]
    words: Vec<String>,
    /// All sockets of this user, in place of ids
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    frame: Frame,
}

#[derive(Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:\n  \
        unisono publish /chat-rooms/1 'new message' '{\"text\":\"hi\"}'\n  \
        unisono publish /chat-rooms/1 tick --confirm\n  \
        unisono publish /ticker --binary frame.bin\n\n\
        Exit status: 0 when it reached every node, 1 when not, 64 wrong use."
)]
pub struct Publish {
    /// The room
    room: String,
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:\n  \
        unisono broadcast maintenance '{\"in_minutes\":5}' --confirm\n  \
        unisono broadcast news - < news.json\n\n\
        Exit status: 0 when it reached every node, 1 when not, 64 wrong use."
)]
pub struct Broadcast {
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    how: How,
}

#[derive(Args)]
struct Content {
    /// The name of the event
    #[arg(required_unless_present_any = ["text", "binary"])]
    event: Option<String>,
    /// Its data: JSON, or `-` for standard input
    data: Option<String>,
    #[command(flatten)]
    frame: Frame,
}

#[derive(Args)]
struct Frame {
    /// A bare text frame in place of an event, or `-` for standard input
    #[arg(long, conflicts_with = "binary", allow_hyphen_values = true)]
    text: Option<String>,
    /// A bare binary frame in place of an event, from a file, or `-` for standard input
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

#[derive(Args)]
struct How {
    /// Wait to learn how many sockets it reached, on which nodes
    #[arg(long)]
    confirm: bool,
    /// A socket that must not get it; may be given several times
    #[arg(long, value_name = "ID")]
    except: Vec<SocketId>,
}

/// The body of a request.
#[derive(Default, Serialize)]
struct Body {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to: Vec<SocketId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<SocketId>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    confirm: bool,
}

impl Emit {
    pub async fn run(self, api: &Api) -> Outcome {
        let body = self.body()?;
        let answer = api.post("/api/v1/emit", &body).await?;
        results(api, &answer, "delivered", Nobody::Fails)
    }

    fn body(self) -> Result<Body, Failure> {
        let mut words = self.words.into_iter().peekable();
        let mut to = Vec::new();
        while self.user.is_none()
            && let Some(id) = words.peek().and_then(|word| word.parse().ok())
        {
            to.push(id);
            words.next();
        }
        if to.is_empty() && self.user.is_none() {
            return Err(Failure::Usage(match words.next() {
                Some(word) => format!("`{word}` is not the id of a socket: give ids, or --user"),
                None => "whom to send to is missing: give ids of sockets, or --user".to_owned(),
            }));
        }
        let content = Content {
            event: words.next(),
            data: words.next(),
            frame: self.frame,
        };
        if let Some(word) = words.next() {
            let message = format!("`{word}` is one word too many: DATA is one argument, in quotes");
            return Err(Failure::Usage(message));
        }
        content.into_body(Body {
            to,
            user: self.user,
            ..Body::default()
        })
    }
}

impl Publish {
    pub async fn run(self, api: &Api) -> Outcome {
        let body = self.content.into_body(Body {
            room: Some(self.room),
            except: self.how.except,
            confirm: self.how.confirm,
            ..Body::default()
        })?;
        let answer = api.post("/api/v1/publish", &body).await?;
        sent(api, &answer)
    }
}

impl Broadcast {
    pub async fn run(self, api: &Api) -> Outcome {
        let body = self.content.into_body(Body {
            except: self.how.except,
            confirm: self.how.confirm,
            ..Body::default()
        })?;
        let answer = api.post("/api/v1/broadcast", &body).await?;
        sent(api, &answer)
    }
}

impl Content {
    fn into_body(self, body: Body) -> Result<Body, Failure> {
        let usage = |why: String| Failure::Usage(why);
        match (self.event, self.frame.text, self.frame.binary) {
            (Some(event), None, None) => {
                let data = self.data.map(|data| match data.as_str() {
                    "-" => stdin_text(),
                    _ => Ok(data),
                });
                let data = data.transpose()?.map(|data| {
                    RawValue::from_string(data.trim().to_owned()).map_err(|error| {
                        usage(format!(
                            "DATA is not JSON: {error}\nA text has quotes of its own: '\"hello\"'."
                        ))
                    })
                });
                Ok(Body {
                    event: Some(event),
                    data: data.transpose()?,
                    ..body
                })
            }
            (None, Some(text), None) => Ok(Body {
                text: Some(if text == "-" { stdin_text()? } else { text }),
                ..body
            }),
            (None, None, Some(file)) => Ok(Body {
                binary: Some(BASE64_STANDARD.encode(read(&file)?)),
                ..body
            }),
            (None, None, None) => Err(usage(
                "what to send is missing: an EVENT, --text or --binary".to_owned(),
            )),
            _ => Err(usage(
                "one of EVENT, --text and --binary can be sent, not several".to_owned(),
            )),
        }
    }
}

/// Whether it is a failure that there is nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Nobody {
    Fails,
    IsFine,
}

/// Shows what became of each socket, or of all under one word.
pub fn results(api: &Api, answer: &Value, word: &str, nobody: Nobody) -> Outcome {
    let each = answer["results"].as_object();
    let all = match each {
        Some(each) => each.values().all(|status| status == "delivered"),
        None => {
            let missing = answer["nodes"]["missing"].as_array();
            let reached = answer[word] != 0 || nobody == Nobody::IsFine;
            reached && missing.is_none_or(Vec::is_empty)
        }
    };
    if api.json() {
        print::line(&answer.to_string())?;
        return Ok(Done::all(all));
    }
    match each {
        Some(each) => {
            let row = |(id, status): (&String, &Value)| vec![id.clone(), text(status)];
            print::table(&["socket", "status"], each.iter().map(row).collect())?;
        }
        None => {
            print::line(&format!("{word}: {}", sockets(&answer[word])))?;
            note_missing(&answer["nodes"]);
        }
    }
    Ok(Done::all(all))
}

fn sent(api: &Api, answer: &Value) -> Outcome {
    let whole = answer["status"] != "local_only";
    let missing = answer["nodes"]["missing"].as_array();
    let all = whole && missing.is_none_or(Vec::is_empty);
    if api.json() {
        print::line(&answer.to_string())?;
        return Ok(Done::all(all));
    }
    let status = text(&answer["status"]);
    match answer.get("sockets") {
        None => print::line(&status)?,
        Some(count) => {
            let nodes = text(&answer["nodes"]["reached"]);
            let nodes = format!("{nodes} node{}", if nodes == "1" { "" } else { "s" });
            print::line(&format!("{status}: {} on {nodes}", sockets(count)))?;
        }
    }
    note_missing(&answer["nodes"]);
    if !whole {
        print::note("the bus is away: only sockets of the node that was asked got it");
    }
    Ok(Done::all(all))
}

fn sockets(count: &Value) -> String {
    let plural = if *count == 1 { "" } else { "s" };
    format!("{} socket{plural}", text(count))
}

fn stdin_text() -> Result<String, Failure> {
    let bytes = textfile::without_mark(read(Path::new("-"))?)?;
    String::from_utf8(bytes).map_err(|_| Failure::Usage("standard input is not UTF-8".to_owned()))
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    fs::read(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))
}
