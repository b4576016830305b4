//! Which paths a pattern stands for, and what is in its places.

use std::borrow::Cow;
use std::cmp::Ordering;

/// A path with places in it: `/chat/{room}`, `/files/{*rest}`.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: Box<str>,
    segments: Box<[Segment]>,
}

/// What stands between two slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// These characters.
    Literal(Box<str>),
    /// Any one segment that is not empty, by this name.
    One(Box<str>),
    /// All that is left, by this name.
    Rest(Box<str>),
}

impl Pattern {
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err("a path begins with a slash".into());
        };
        let mut segments: Vec<Segment> = Vec::new();
        for part in path.split('/') {
            if let Some(Segment::Rest(name)) = segments.last() {
                return Err(format!(
                    "nothing can follow {{*{name}}}, which takes all that is left"
                ));
            }
            let segment = Segment::parse(part)?;
            if let Some(name) = segment.name() {
                if segments.iter().any(|earlier| earlier.name() == Some(name)) {
                    return Err(format!("it has two places with the name {name:?}"));
                }
            }
            segments.push(segment);
        }
        Ok(Self { text: text.into(), segments: segments.into() })
    }

    /// As it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// As a URI has it (RFC 3986 section 3.3), with its places as `{name}` of either kind.
    #[cfg(feature = "json")]
    pub(crate) fn template(&self) -> String {
        let mut template = String::new();
        for segment in &self.segments {
            template.push('/');
            match segment {
                Segment::Literal(literal) => {
                    for byte in literal.bytes() {
                        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) {
                            template.push(byte.into());
                        } else {
                            template.push_str(&format!("%{byte:02X}"));
                        }
                    }
                }
                Segment::One(name) | Segment::Rest(name) => {
                    template.push_str(&format!("{{{name}}}"));
                }
            }
        }
        template
    }

    /// The names of its places.
    #[cfg(feature = "json")]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// The more definite first: what is written before what is not, from the left. Equal: they stand for
    /// the same paths.
    ///
    /// In this order the first pattern that matches is the one that is meant: where two of them match one
    /// path, they differ first at a segment that one has written down and the other has not, or that one
    /// takes alone and the other with all behind it.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let keys = self.segments.iter().map(Segment::key);
        keys.cmp(other.segments.iter().map(Segment::key))
    }

    /// Whether it stands for this path, as a request has it.
    pub(crate) fn matches(&self, path: &str) -> bool {
        self.walk(path, |_, _| {})
    }

    /// What this path has in the place with this name.
    pub(super) fn param<'a>(&self, path: &'a str, name: &str) -> Option<Cow<'a, str>> {
        let mut found = None;
        let matches = self.walk(path, |segment, value| {
            if segment.name() == Some(name) {
                found = Some(value);
            }
        });
        found.filter(|_| matches)
    }

    /// Goes through path and pattern side by side, as far as they agree; says whether they do to the end.
    fn walk<'a>(&self, path: &'a str, mut each: impl FnMut(&Segment, Cow<'a, str>)) -> bool {
        let mut left = path.strip_prefix('/');
        for segment in &self.segments {
            let Some(rest) = left else {
                return false;
            };
            let (part, behind) = match (segment, rest.split_once('/')) {
                (Segment::Rest(_), _) | (_, None) => (rest, None),
                (_, Some((part, behind))) => (part, Some(behind)),
            };
            // Split first, then decoded: an encoded slash divides nothing (RFC 3986 section 2.2).
            let Some(part) = percent_decoded(part) else {
                return false;
            };
            let agree = match segment {
                Segment::Literal(literal) => part == **literal,
                Segment::One(_) | Segment::Rest(_) => !part.is_empty(),
            };
            if !agree {
                return false;
            }
            each(segment, part);
            left = behind;
        }
        left.is_none()
    }
}

impl Segment {
    fn parse(part: &str) -> Result<Self, String> {
        let inside = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        let Some(inside) = inside else {
            return match part.find(|character| "{}?#%".contains(character)) {
                None => Ok(Self::Literal(part.into())),
                Some(_) if part.contains('%') => {
                    Err(format!("{part:?} is percent-encoded: write it as it reads"))
                }
                Some(_) if part.contains(['{', '}']) => {
                    Err(format!("{part:?}: a place in braces takes a whole segment"))
                }
                Some(_) => Err(format!("{part:?}: a path ends before ? and #")),
            };
        };
        let (name, rest) = match inside.strip_prefix('*') {
            Some(name) => (name, true),
            None => (inside, false),
        };
        if name.is_empty() || !name.chars().all(|it| it.is_alphanumeric() || it == '_') {
            return Err(format!("{part:?}: a place has a name of letters, digits and underscores"));
        }
        Ok(if rest { Self::Rest(name.into()) } else { Self::One(name.into()) })
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::One(name) | Self::Rest(name) => Some(name),
        }
    }

    /// What makes a difference to the paths that match.
    fn key(&self) -> (u8, &str) {
        match self {
            Self::Literal(literal) => (0, literal),
            Self::One(_) => (1, ""),
            Self::Rest(_) => (2, ""),
        }
    }
}

/// Undoes percent-encoding (RFC 3986 section 2.1). `None`: it is none, or what comes out is not UTF-8.
pub(crate) fn percent_decoded(part: &str) -> Option<Cow<'_, str>> {
    if !part.contains('%') {
        return Some(Cow::Borrowed(part));
    }
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_pattern_stands_for_these_paths_and_not_for_those() {
        for (text, paths, others) in [
            ("/", &["/"][..], &["", "//", "/a"][..]),
            ("/a", &["/a", "/%61"], &["/", "/a/", "/A", "/ab", "a", "/a/b", "/%6", "/%", "/%zz"]),
            ("/a/", &["/a/"], &["/a", "/a//", "/a/b"]),
            ("/caf\u{e9}", &["/caf%C3%A9", "/caf%c3%a9"], &["/caf%E9", "/cafe"]),
            ("/{x}", &["/a", "/%2F", "/.."], &["/", "/a/", "/a/b", "/%ff", "/%"]),
            ("/{x}/b", &["/a/b"], &["/a", "//b", "/a/c", "/a/b/"]),
            ("/f/{*rest}", &["/f/a", "/f/a/b/", "/f//"], &["/f", "/f/", "/f/%ff/a"]),
            ("/{*rest}", &["/a", "/a/b", "//"], &["/", ""]),
        ] {
            for path in paths {
                assert!(pattern(text).matches(path), "{text} {path}");
            }
            for path in others {
                assert!(!pattern(text).matches(path), "{text} {path}");
            }
        }
    }

    #[test]
    fn what_is_in_a_place_is_decoded() {
        let chat = pattern("/chat/{room}/{user_1}");
        let path = "/chat/a%20b/%2e%2E%2F%00+";
        assert_eq!(chat.param(path, "room").as_deref(), Some("a b"));
        assert_eq!(chat.param(path, "user_1").as_deref(), Some("../\0+"));
        assert_eq!(chat.param(path, "chat"), None);
        assert!(matches!(chat.param("/chat/a/b", "room"), Some(Cow::Borrowed("a"))));
        assert_eq!(chat.param("/chat/a", "room"), None, "it is not that path");
        let files = pattern("/{top}/{*rest}");
        assert_eq!(files.param("/a/b/c%2Fd/", "rest").as_deref(), Some("b/c/d/"));
    }

    #[test]
    fn the_more_definite_pattern_comes_first() {
        let ordered = [
            "/", "/a", "/a/b", "/a/b/{x}", "/a/{x}", "/a/{x}/c", "/a/{*x}", "/b", "/{x}", "/{x}/b",
            "/{x}/{y}", "/{*x}",
        ];
        for (at, first) in ordered.iter().enumerate() {
            for (behind, second) in ordered.iter().enumerate() {
                let (first, second) = (pattern(first), pattern(second));
                assert_eq!(first.order(&second), at.cmp(&behind), "{first:?} {second:?}");
            }
        }
        assert_eq!(pattern("/{x}/b/{*y}").order(&pattern("/{y}/b/{*z}")), Ordering::Equal);
    }

    #[test]
    fn a_pattern_that_cannot_be_says_why() {
        for (text, problem) in [
            ("", "slash"),
            ("a", "slash"),
            ("/{x}b", "whole segment"),
            ("/b{x}", "whole segment"),
            ("/{", "whole segment"),
            ("/}", "whole segment"),
            ("/{}", "name"),
            ("/{*}", "name"),
            ("/{a b}", "name"),
            ("/{a}{b}", "name"),
            ("/{*x}/a", "nothing can follow {*x}"),
            ("/{*x}/", "nothing can follow"),
            ("/{x}/{x}", "two places"),
            ("/{x}/{*x}", "two places"),
            ("/a%20b", "as it reads"),
            ("/a?b", "before ?"),
            ("/a#b", "before ?"),
        ] {
            let said = Pattern::parse(text).unwrap_err();
            assert!(said.contains(problem), "{text}: {said}");
        }
    }
}
