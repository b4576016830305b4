//! A configuration from text: the environment, a `.env` file, or any pairs of names and values.

#[cfg(feature = "dotenv")]
mod dotenv;
mod draft;
mod history;
mod near;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;

use self::draft::Draft;
use self::near::{is_near, nearest};
use self::values::{Parsed, is_pem};
use super::Config;
use crate::error::{Error, Result};

/// What all names begin with that nobody else uses.
const PREFIX: &str = "WEBSOCKET_";

impl Config {
    /// Reads the environment: `WEBSOCKET_HOST`, `WEBSOCKET_PORT`, `TLS_CERT` and all other
    /// [settings](crate::docs::settings). What is not set there is as in [`Config::default`], and the server
    /// [listens](Self::listen) on `0.0.0.0:9090`.
    ///
    /// ```rust,no_run
    /// use coracle::{Server, config::Config};
    ///
    /// fn main() -> coracle::Result<()> {
    ///     Server::builder()
    ///         .config(Config::from_env()?)
    ///         .on_message(async |session, message| session.send(message).await)
    ///         .run()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Config`] names each setting that cannot be, its value and what is allowed; not only the first.
    /// A variable whose name begins with `WEBSOCKET_` and that is no setting is an error, too, and so is one
    /// whose name is one letter beside that of a setting. [`Error::History`] says why the database of
    /// `WEBSOCKET_HISTORY` cannot be opened, which is done here.
    pub fn from_env() -> Result<Self> {
        let mut sources = Sources::default();
        sources.add_environment();
        sources.read()
    }

    /// Reads pairs of names and values as [`from_env`](Self::from_env) reads the environment. Of two with one
    /// name the first counts.
    ///
    /// ```
    /// use coracle::config::Config;
    ///
    /// # fn main() -> coracle::Result<()> {
    /// let config = Config::from_pairs([("WEBSOCKET_PORT", "9001"), ("WEBSOCKET_WORKERS", "2")])?;
    /// assert_eq!(config.workers, Some(2));
    /// let wrong = Config::from_pairs([("WEBSOCKET_PORT", "http")]).unwrap_err();
    /// assert_eq!(
    ///     wrong.to_string(),
    ///     "configuration: WEBSOCKET_PORT is \"http\": allowed is a whole number from 0 to 65535",
    /// );
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As of [`from_env`](Self::from_env).
    pub fn from_pairs<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self>
    where
        N: Into<OsString>,
        V: Into<OsString>,
    {
        let mut sources = Sources::default();
        for (name, value) in pairs {
            sources.add(&name.into(), value.into(), Origin::Pair);
        }
        sources.read()
    }

    /// Reads the environment and, for what is not set there, the file `.env` of the working directory, if
    /// there is one. The environment is not changed.
    ///
    /// # Errors
    ///
    /// As of [`from_env`](Self::from_env), with the line of the file; a file that cannot be read; and a
    /// setting that the file has twice.
    #[cfg(feature = "dotenv")]
    pub fn from_dotenv() -> Result<Self> {
        let mut sources = Sources::default();
        sources.add_environment();
        sources.add_file(".env".as_ref(), dotenv::Missing::Allowed)?;
        sources.read()
    }

    /// The same with another file, which must be there.
    ///
    /// # Errors
    ///
    /// As of [`from_dotenv`](Self::from_dotenv); a file that is not there.
    #[cfg(feature = "dotenv")]
    pub fn from_dotenv_file(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let mut sources = Sources::default();
        sources.add_environment();
        sources.add_file(path.as_ref(), dotenv::Missing::Refused)?;
        sources.read()
    }

    /// All settings that [`from_env`](Self::from_env) knows, for a program's `--help`. They are the same with
    /// any features of this crate; one whose feature is missing is an error where it is set.
    pub fn settings() -> impl Iterator<Item = &'static Setting> {
        table::settings()
    }
}

/// A setting that has a name: one line of [the table](crate::docs::settings).
pub struct Setting {
    name: &'static str,
    default: &'static str,
    set: fn(&mut Draft, &str) -> Parsed<()>,
    /// It does nothing unless one of these is set.
    needs: &'static [&'static str],
    /// What this build would have to have.
    feature: Option<&'static str>,
    is_secret: bool,
}

impl Setting {
    /// How the variable is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The value that is the same as none; empty where there is no such value.
    #[must_use]
    pub fn default_value(&self) -> &'static str {
        self.default
    }

    const fn needs(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }

    const fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting")
            .field("name", &self.name)
            .field("default", &self.default)
            .finish_non_exhaustive()
    }
}

/// Where a value was found.
#[derive(Clone, Debug)]
enum Origin {
    Environment,
    #[cfg(feature = "dotenv")]
    File(String, usize),
    Pair,
}

/// As it stands behind a value.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str(" in the environment"),
            #[cfg(feature = "dotenv")]
            Self::File(file, line) => write!(f, " at {file}:{line}"),
            Self::Pair => Ok(()),
        }
    }
}

/// What was found, before it is read. Not for `Debug`: passwords are among it.
#[derive(Default)]
struct Sources {
    given: BTreeMap<&'static str, (OsString, Origin)>,
    problems: Vec<String>,
    /// A name was wrong, so all names are of interest.
    is_name_wrong: bool,
}

impl Sources {
    fn add_environment(&mut self) {
        for (name, value) in std::env::vars_os() {
            self.add(&name, value, Origin::Environment);
        }
    }

    /// What has come before counts.
    fn add(&mut self, name: &OsStr, value: OsString, origin: Origin) {
        if let Some(setting) = find(name) {
            self.given.entry(setting.name).or_insert((value, origin));
            return;
        }
        let name = name.to_string_lossy();
        let upper = name.to_ascii_uppercase();
        let near = near_setting(&upper);
        if near.is_none() && !upper.starts_with(PREFIX) {
            return;
        }
        let mut problem = format!("{:?}{origin} is no setting", shown(&name));
        if is_of_kubernetes(&upper) {
            problem += KUBERNETES;
        } else if let Some(similar) = near.map(|it| it.name).or_else(|| similar(&upper)) {
            problem += &format!(": did you mean {similar}?");
        }
        self.problems.push(problem);
        self.is_name_wrong = true;
    }

    fn read(mut self) -> Result<Config> {
        let mut draft = Draft::default();
        for setting in table::settings() {
            let Some((value, origin)) = self.given.get(setting.name) else { continue };
            let problem = setting
                .read(value, origin, &mut draft)
                .or_else(|| setting.lacks(origin, |name| self.given.contains_key(name)));
            self.problems.extend(problem);
        }
        if self.problems.is_empty() {
            return draft.finish();
        }
        if self.is_name_wrong {
            let names: Vec<_> = table::settings().map(Setting::name).collect();
            self.problems.push(format!("the settings are {}", names.join(", ")));
        }
        Err(Error::Config(self.problems.join("\n  ")))
    }
}

fn find(name: &OsStr) -> Option<&'static Setting> {
    table::settings().find(|setting| name == setting.name)
}

/// One whose name differs by a letter at most.
fn near_setting(name: &str) -> Option<&'static Setting> {
    table::settings().find(|setting| is_near(setting.name, name))
}

/// What somebody may have meant, of the names that begin alike.
fn similar(name: &str) -> Option<&'static str> {
    let rest = name.strip_prefix(PREFIX)?;
    let ours = || table::settings().map(Setting::name);
    let meant = nearest(rest, ours().filter_map(|it| it.strip_prefix(PREFIX)))?;
    ours().find(|it| it.strip_prefix(PREFIX) == Some(meant))
}

impl Setting {
    /// Takes the value over, or says what is wrong with it.
    fn read(&self, value: &OsStr, origin: &Origin, draft: &mut Draft) -> Option<String> {
        let name = self.name;
        if let Some(feature) = self.feature {
            return Some(format!(
                "{name} is set{origin}, and this program was built without it: build it with the feature \
                 `{feature}` of coracle, or unset it"
            ));
        }
        let Some(text) = value.to_str() else {
            let shown = if self.is_secret { "set".to_owned() } else { format!("{value:?}") };
            return Some(format!("{name} is {shown}{origin}: allowed is UTF-8 only"));
        };
        if text.is_empty() {
            return Some(format!("{name} is empty{origin}: give it a value, or unset it"));
        }
        let mut problem = (self.set)(draft, text).err()?;
        if name == "WEBSOCKET_PORT" && text.starts_with("tcp://") {
            problem += KUBERNETES;
        }
        let shown = match self.is_secret || is_pem(text) {
            true => "set".to_owned(),
            false => format!("{:?}", shown(text)),
        };
        Some(format!("{name} is {shown}{origin}: {problem}"))
    }

    /// A setting that would change nothing is a mistake: certificates without a key, the size of a bucket
    /// without a rate.
    fn lacks(&self, origin: &Origin, is_given: impl Fn(&str) -> bool) -> Option<String> {
        let Self { name, needs, .. } = self;
        if needs.is_empty() || needs.iter().any(|needed| is_given(needed)) {
            return None;
        }
        let needs = needs.join(" or ");
        Some(format!(
            "{name} is set{origin}, and {needs} is missing, without which it does nothing: set {needs}, too, \
             or unset {name}"
        ))
    }
}

/// Kubernetes puts the addresses of services into the environment, and one that is called `websocket` gets
/// the names of settings.
const KUBERNETES: &str = " (Kubernetes sets this variable for a service with the name `websocket`: set \
                          `enableServiceLinks: false` in the pod's spec, or give the service another name)";

fn is_of_kubernetes(name: &str) -> bool {
    ["SERVICE_HOST", "SERVICE_PORT", "PORT_"]
        .iter()
        .any(|rest| name.strip_prefix(PREFIX).is_some_and(|name| name.starts_with(rest)))
}

/// What of a wrong value is repeated: enough to find it by.
fn shown(text: &str) -> String {
    const CHARS: usize = 100;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
