//! What the example servers share: arguments, logging, the line that says "ready".
#![allow(dead_code, unreachable_pub, reason = "not every example uses everything")]

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use coracle::{BoxError, ServerHandle};

/// The address and the options of an example's command line.
pub struct Args {
    address: Option<String>,
    values: Vec<(&'static str, String)>,
    flags: Vec<&'static str>,
    usage: &'static str,
}

impl Args {
    /// Reads `[ADDRESS]` and options that each have a value.
    pub fn parse(usage: &'static str, options: &[&'static str]) -> Result<Self, BoxError> {
        Self::parse_with_flags(usage, options, &[])
    }

    /// The same with options that have none.
    pub fn parse_with_flags(
        usage: &'static str,
        options: &[&'static str],
        flags: &[&'static str],
    ) -> Result<Self, BoxError> {
        let mut args = Self { address: None, values: Vec::new(), flags: Vec::new(), usage };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--help" || word == "-h" {
                println!("{usage}");
                std::process::exit(0);
            } else if let Some(option) = options.iter().find(|option| **option == word) {
                let value = words.next().ok_or(format!("{word} needs a value\n{usage}"))?;
                args.values.push((option, value));
            } else if let Some(flag) = flags.iter().find(|flag| **flag == word) {
                args.flags.push(flag);
            } else if word.starts_with('-') || args.address.is_some() {
                return Err(format!("unexpected argument {word:?}\n{usage}").into());
            } else {
                args.address = Some(word);
            }
        }
        Ok(args)
    }

    /// Where to listen.
    pub fn address(&self) -> &str {
        self.address.as_deref().unwrap_or("127.0.0.1:9001")
    }

    /// The argument that is no option.
    pub fn given(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub fn flag(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    pub fn value(&mut self, option: &str) -> Option<&str> {
        self.values.iter().rev().find(|(name, _)| *name == option).map(|(_, value)| &**value)
    }

    pub fn number(&mut self, option: &str) -> Result<Option<usize>, BoxError> {
        let usage = self.usage;
        let Some(value) = self.value(option) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("{option}: {value:?} is not a whole number\n{usage}").into()),
        }
    }
}

/// Logs to standard error, or to a file; how much is said by `RUST_LOG`.
pub fn log_to(path: Option<&str>) -> Result<(), BoxError> {
    let mut logger = env_logger::builder();
    if let Some(path) = path {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|error| format!("cannot write the log file {path:?}: {error}"))?;
        logger.target(env_logger::Target::Pipe(Box::new(file)));
    }
    logger.init();
    Ok(())
}

/// Says what went wrong as a person wants to read it.
pub fn exit(outcome: Result<(), BoxError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints `listening on ws://ADDRESS/`, for people and for programs that start the example.
pub fn ready(server: &ServerHandle) {
    ready_for("ws", server);
}

/// The same with another scheme.
pub fn ready_for(scheme: &str, server: &ServerHandle) {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away is no reason to stop serving.
    let _ = writeln!(out, "listening on {scheme}://{}/", server.local_addr());
    let _ = out.flush();
}
