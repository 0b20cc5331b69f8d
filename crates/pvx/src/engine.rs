//! Engines as they are named on command lines.

use process_vm_exec::Engine;

/// An engine by its name.
pub(crate) fn engine(name: &str) -> Result<Engine, String> {
    name.parse().map_err(|_| format!("use one of {}", names()))
}

/// The names of all, for people.
fn names() -> String {
    Engine::ALL.map(Engine::name).join(", ")
}
