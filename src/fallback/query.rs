//! What a request says about its session, in the query of its target.

use std::borrow::Cow;

use crate::paths::percent_decoded;

/// The parameters of all requests; each has those that it needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) session: Option<String>,
    pub(super) cursor: Option<u64>,
    pub(super) max: Option<usize>,
    pub(super) text: bool,
    pub(super) path: Option<String>,
    pub(super) seq: Option<u64>,
    pub(super) code: Option<u16>,
    pub(super) reason: Option<String>,
}

impl Query {
    /// Reads a query as forms write it (HTML, application/x-www-form-urlencoded). What is not known is left
    /// alone: proxies and clients add things of their own.
    ///
    /// # Errors
    ///
    /// A sentence for the client.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut found = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "session_id" => set(&mut found.session, name, text(name, value)?)?,
                "cursor" => set(&mut found.cursor, name, number(name, value)?)?,
                "max" => set(&mut found.max, name, number(name, value)?)?,
                "text" => found.text = value == "1",
                "path" => set(&mut found.path, name, text(name, value)?)?,
                "seq" => set(&mut found.seq, name, number(name, value)?)?,
                "code" => set(&mut found.code, name, number(name, value)?)?,
                "reason" => set(&mut found.reason, name, text(name, value)?)?,
                _ => {}
            }
        }
        if found.max == Some(0) || found.seq == Some(0) {
            return Err("the parameters max and seq are counted from 1".into());
        }
        Ok(found)
    }
}

fn set<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("the parameter {name} is there twice: send it once")),
    }
}

fn text(name: &str, value: &str) -> Result<String, String> {
    let spaced: Cow<'_, str> =
        if value.contains('+') { value.replace('+', " ").into() } else { value.into() };
    let decoded = percent_decoded(&spaced).map(Cow::into_owned);
    decoded.ok_or_else(|| format!("the parameter {name} is no percent-encoding of UTF-8"))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    // Not what else `parse` takes: a sign.
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { value.parse().ok() } else { None };
    number.ok_or_else(|| format!("the parameter {name} is no number that could be one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_read_and_others_are_left_alone() {
        let query = "session_id=a-_b&cursor=7&max=50&text=1&path=%2Fchat%2Fx%3Fa%3D%2B+b&seq=3&code=4000\
                     &reason=gr%C3%BC%C3%9Fe&_=12345&x&cursorx=1";
        assert_eq!(
            Query::parse(query).unwrap(),
            Query {
                session: Some("a-_b".into()),
                cursor: Some(7),
                max: Some(50),
                text: true,
                path: Some("/chat/x?a=+ b".into()),
                seq: Some(3),
                code: Some(4000),
                reason: Some("grüße".into()),
            }
        );
        assert_eq!(Query::parse("").unwrap(), Query::default());
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (query, what) in [
            ("cursor=-1", "cursor"),
            ("cursor=+1", "cursor"),
            ("cursor=", "cursor"),
            ("cursor=99999999999999999999", "cursor"),
            ("cursor=1&cursor=1", "twice"),
            ("max=0", "max"),
            ("seq=0", "seq"),
            ("code=70000", "code"),
            ("path=%", "path"),
            ("path=%ff", "path"),
        ] {
            let error = Query::parse(query).unwrap_err();
            assert!(error.contains(what), "{query}: {error}");
        }
    }
}
