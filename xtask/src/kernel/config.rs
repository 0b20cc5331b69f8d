//! The kernel's configuration: fragments over "everything is off".

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::source::Source;

/// What the names of all options start with that the patches add.
const OURS: &str = "CONFIG_PROCESS_VM_EXEC";

/// The configurations that there are: `kernel/config/` has a fragment for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Config {
    /// The kernel as one would use it
    Plain,
    /// With lockdep and other checks
    Debug,
}

/// What the fragments ask for, by the option's name.
#[derive(Debug)]
pub(super) struct Wanted(BTreeMap<String, String>);

impl Config {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Debug => "debug",
        }
    }

    /// How much longer than a plain kernel this one takes, about.
    pub(super) fn slowness(self) -> u32 {
        match self {
            Self::Plain => 1,
            Self::Debug => 4,
        }
    }

    pub(super) fn memory_mib(self) -> u32 {
        match self {
            Self::Plain => 1024,
            Self::Debug => 3072,
        }
    }

    fn fragments(self, root: &Path) -> [PathBuf; 2] {
        ["base", self.name()].map(|name| root.join(format!("kernel/config/{name}.config")))
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Wanted {
    /// Reads the fragments of `config`, without what `source` does not know; a later one has the last word.
    pub(super) fn read(root: &Path, config: Config, source: Source) -> Result<Self> {
        let mut options = BTreeMap::new();
        for path in config.fragments(root) {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            options.extend(parse(&text));
        }
        if source == Source::Unpatched {
            options.retain(|name, _| !name.starts_with(OURS));
        }
        Ok(Self(options))
    }

    /// As KCONFIG_ALLCONFIG takes it.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    /// Complains if `made`, a finished configuration, does not have what is wanted.
    pub(super) fn check(&self, made: &str) -> Result<()> {
        let made: BTreeMap<String, String> = parse(made).collect();
        let value = |name: &str| made.get(name).map_or("n", String::as_str);
        let lost: String = (self.0.iter())
            .filter(|(name, wanted)| value(name) != wanted.as_str())
            .map(|(name, wanted)| format!("\n  {name}={wanted}, but it is {}", value(name)))
            .collect();
        ensure!(
            lost.is_empty(),
            "the kernel's configuration lacks what kernel/config asks for (something they depend on?):{lost}"
        );
        Ok(())
    }
}

/// Options and their values; "is not set" is `n`.
fn parse(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let unset = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
        let (name, value) = unset.map(|name| (name, "n")).or_else(|| line.split_once('='))?;
        name.starts_with("CONFIG_").then(|| (name.trim().to_owned(), value.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        Wanted(parse(text).collect())
    }

    #[test]
    fn a_kernel_without_the_patches_is_asked_for_nothing_of_theirs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        let read = |source| Wanted::read(root, Config::Plain, source).expect("the fragments").0;
        let mut patched = read(Source::Patched);
        assert_eq!(patched.remove(OURS).as_deref(), Some("y"));
        assert_eq!(patched, read(Source::Unpatched));
    }

    #[test]
    fn an_option_that_did_not_stick_is_named() {
        let wanted = wanted("CONFIG_A=y\nCONFIG_B=8\n# CONFIG_C is not set\n# a comment\n");
        wanted.check("CONFIG_A=y\nCONFIG_B=8\n").expect("all of it is there");
        let error =
            wanted.check("# CONFIG_A is not set\nCONFIG_B=8\n").expect_err("A is missing").to_string();
        assert!(error.contains("CONFIG_A=y, but it is n"), "{error}");
        assert!(!error.contains("CONFIG_B"), "{error}");
        assert!(wanted.check("CONFIG_A=y\nCONFIG_B=8\nCONFIG_C=y\n").is_err());
    }
}
