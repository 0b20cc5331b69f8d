//! Which engines work on this machine, and the choice of one.

use crate::engine::{native, rewrite};
use crate::error::{Error, Result};
use crate::executor::task;
use crate::name::Engine;
use crate::refusal::EngineError;

/// What works on this machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Detection {
    /// The engine that [`AddressSpace::create`](crate::AddressSpace::create) uses.
    pub best: Engine,
    /// Every engine, the best first, and what it lacks here; `None` where it works.
    pub engines: Vec<(Engine, Option<EngineError>)>,
}

impl Engine {
    /// The environment variable that overrides the choice.
    pub const VARIABLE: &'static str = "PROCESS_VM_EXEC_ENGINE";

    /// Finds the best engine that works here, or takes the one that `PROCESS_VM_EXEC_ENGINE` names, if
    /// that is set and not empty.
    ///
    /// # Errors
    /// If the variable names no engine, or one that does not work here.
    pub fn detect() -> Result<Detection> {
        let engines = Self::ALL.map(|engine| (engine, engine.lacks()));
        let best = match std::env::var(Self::VARIABLE) {
            Ok(name) if !name.is_empty() => {
                let chosen: Self = name.parse()?;
                chosen.require()?;
                chosen
            }
            _ => engines
                .iter()
                .find(|(_, lack)| lack.is_none())
                .map(|&(engine, _)| engine)
                .ok_or_else(|| Self::Ptrace.require().expect_err("no engine works"))?,
        };
        Ok(Detection { best, engines: engines.into() })
    }

    /// # Errors
    /// [`Error::Engine`] if it does not work here.
    pub(crate) fn require(self) -> Result<()> {
        match self.lacks() {
            Some(why) => Err(Error::Engine { engine: self, why }),
            None => Ok(()),
        }
    }

    /// What it lacks on this machine.
    fn lacks(self) -> Option<EngineError> {
        match self {
            Self::Rewrite => task::lacks().or_else(rewrite::lacks),
            Self::Trap => task::lacks(),
            Self::Ptrace => None,
            Self::Native => native::lacks(),
        }
    }
}

/// What [`Engine::detect`] says, asked once.
pub(crate) fn default_engine() -> Result<Engine> {
    static ENGINE: std::sync::OnceLock<Engine> = std::sync::OnceLock::new();
    match ENGINE.get() {
        Some(&engine) => Ok(engine),
        None => Ok(*ENGINE.get_or_init({
            let best = Engine::detect()?.best;
            move || best
        })),
    }
}
