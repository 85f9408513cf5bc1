//! What the application answers to a request.

use std::collections::HashMap;

use bytes::Bytes;
use proto::json::check_data;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Actions, HookAnswer};

/// The answer to one request.
#[derive(Debug, Default)]
pub struct Answers {
    by_id: HashMap<String, HookAnswer>,
    /// What is to be done.
    pub actions: Actions,
}

/// An error of the application, as it may write it.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum ErrorText {
    /// The text for the client alone.
    Text(String),
    /// An object that has it, as the errors of the API do.
    Object {
        /// The text.
        message: String,
    },
}

/// Why an answer cannot be read; not its words, which belong into no log.
pub type Nonsense = &'static str;

/// Values stay text: what an ack holds is the client's, number for number.
type Object<'a> = HashMap<String, &'a RawValue>;

impl Answers {
    /// Reads the body of an answer. None at all is one without answers or actions.
    pub fn parse(body: &[u8]) -> Result<Self, Nonsense> {
        let text = str::from_utf8(body).map_err(|_| "not UTF-8")?;
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let body = object(text).ok_or("not a JSON object")?;
        let answers = match body.get("answers") {
            Some(answers) => object(answers.get()).ok_or("`answers` is not an object")?,
            None => Object::new(),
        };
        let by_id = answers
            .into_iter()
            .map(|(id, answer)| Some((id, one(answer)?)))
            .collect::<Option<_>>()
            .ok_or("an answer is not an object with `ack` or `error`")?;
        let actions = match body.get("actions") {
            Some(actions) => serde_json::from_str::<Option<Actions>>(actions.get())
                .map_err(|_| "`actions` is not a list")?,
            None => None,
        };
        Ok(Self {
            by_id,
            actions: actions.unwrap_or_default(),
        })
    }

    /// The answer to one event. One that is not named was taken, and that is all.
    pub fn remove(&mut self, id: &str) -> HookAnswer {
        self.by_id.remove(id).unwrap_or(HookAnswer::Ack(None))
    }
}

impl From<ErrorText> for String {
    fn from(error: ErrorText) -> Self {
        match error {
            ErrorText::Text(text) | ErrorText::Object { message: text } => text,
        }
    }
}

fn one(answer: &RawValue) -> Option<HookAnswer> {
    let answer = object(answer.get())?;
    let error = match answer.get("error") {
        Some(error) => serde_json::from_str::<Option<ErrorText>>(error.get()).ok()?,
        None => None,
    };
    Some(match error {
        Some(text) => HookAnswer::Failed(text.into()),
        None => {
            let ack = answer.get("ack");
            if ack.is_none() && !answer.is_empty() {
                return None;
            }
            match ack.map(|ack| ack.get().as_bytes()) {
                None => HookAnswer::Ack(None),
                Some(ack) => match check_data(ack) {
                    Ok(()) => HookAnswer::Ack(Some(Bytes::copy_from_slice(ack))),
                    Err(error) => HookAnswer::Failed(format!("the application's answer {error}")),
                },
            }
        }
    })
}

/// PHP writes an array without entries as `[]` whatever it stands for, so that is an empty object, too.
fn object(json: &str) -> Option<Object<'_>> {
    match serde_json::from_str::<Option<[(); 0]>>(json) {
        Ok(_) => Some(Object::new()),
        Err(_) => serde_json::from_str(json).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(text: &'static str) -> HookAnswer {
        HookAnswer::Ack(Some(Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn answers_are_told_apart() {
        let body = br#" {"answers":{
            "1":{"ack":{"b":123456789012345678901234567890,"a":1.50}},
            "2":{"error":"no"},
            "3":{"ack":null,"error":null},
            "4":{},
            "5":{"ack":1,"error":"both","more":[]},
            "7":{"error":{"code":"x","message":"no"}},
            "8":{"ack":["\ud800"]}
        },"actions":[{"emit":{"data":123456789012345678901234567890}}, 1],"more":1} "#;
        let mut answers = Answers::parse(body).unwrap();
        let number_for_number = ack(r#"{"b":123456789012345678901234567890,"a":1.50}"#);
        assert_eq!(answers.remove("1"), number_for_number);
        assert_eq!(answers.remove("2"), HookAnswer::Failed("no".to_owned()));
        assert_eq!(answers.remove("3"), ack("null"));
        assert_eq!(answers.remove("4"), HookAnswer::Ack(None));
        assert_eq!(answers.remove("5"), HookAnswer::Failed("both".to_owned()));
        assert_eq!(answers.remove("6"), HookAnswer::Ack(None));
        assert_eq!(answers.remove("7"), HookAnswer::Failed("no".to_owned()));
        let unreadable = "the application's answer has a lone surrogate";
        let unreadable = HookAnswer::Failed(unreadable.to_owned());
        assert_eq!(answers.remove("8"), unreadable);
        let actions: Vec<_> = answers.actions.iter().map(|action| action.get()).collect();
        let number_for_number = r#"{"emit":{"data":123456789012345678901234567890}}"#;
        assert_eq!(actions, [number_for_number, "1"]);
    }

    #[test]
    fn an_answer_may_be_empty() {
        for body in [
            "",
            " \r\n",
            "{}",
            "[]",
            "null",
            r#"{"answers":[],"actions":[]}"#,
            r#"{"answers":null,"actions":null}"#,
        ] {
            let answers = Answers::parse(body.as_bytes()).expect(body);
            assert!(answers.by_id.is_empty() && answers.actions.is_empty());
        }
    }

    #[test]
    fn nonsense_is_nonsense() {
        for body in [
            "ok",
            "\"ok\"",
            "<html>",
            "[1]",
            "{} {}",
            r#"{"answers":[1]}"#,
            r#"{"answers":{"1":"ok"}}"#,
            r#"{"answers":{"1":["ok"]}}"#,
            r#"{"answers":{"1":{"error":1}}}"#,
            r#"{"actions":{"emit":{}}}"#,
            r#"{"answers":{},"actions":[{]}"#,
        ] {
            assert!(Answers::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(Answers::parse(b"\xff").is_err());
    }
}
