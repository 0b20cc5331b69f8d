//! What `pvx inspect` reports. These structures are the JSON; `docs/inspect.md` explains each field.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{
    descriptors::Descriptor,
    memory::Memory,
    process::{Credentials, Identity, Limit, Namespace, Settings},
    signals::{Handler, Signals},
    threads::Thread,
    timers::Timer,
    visits::IntervalTimer,
};

/// All of it. A section that could not be had is null, and `missing` says why.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) pid: i32,
    /// Whether the process itself was asked, too.
    pub(crate) attached: bool,
    pub(crate) identity: Option<Identity>,
    pub(crate) memory: Option<Memory>,
    pub(crate) threads: Option<Vec<Thread>>,
    pub(crate) signals: Option<Signals>,
    /// What the process answers; null without being attached.
    pub(crate) handlers: Option<Vec<Handler>>,
    pub(crate) timers: Option<Vec<Timer>>,
    pub(crate) interval_timers: Option<Vec<IntervalTimer>>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) namespaces: Option<Vec<Namespace>>,
    pub(crate) limits: Option<Vec<Limit>>,
    pub(crate) descriptors: Option<Vec<Descriptor>>,
    pub(crate) settings: Option<Settings>,
    pub(crate) missing: Vec<Missing>,
}

/// Something that the report lacks.
#[derive(Debug, Serialize)]
pub(crate) struct Missing {
    pub(crate) what: &'static str,
    pub(crate) why: String,
}

/// Addresses and registers are strings in hexadecimal: JSON's numbers are exact up to 2^53 only in many programs.
pub(crate) fn hex<S: Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}

impl Report {
    /// A section, or a note why it is not there.
    pub(crate) fn section<T>(
        &mut self,
        what: &'static str,
        found: Result<T, impl fmt::Display>,
    ) -> Option<T> {
        found.map_err(|why| self.lacks(what, &why)).ok()
    }

    pub(crate) fn lacks(&mut self, what: &'static str, why: &impl fmt::Display) {
        self.missing.push(Missing { what, why: why.to_string() });
    }
}
