//! The kernel's source: unpacked once, then kept equal to "Debian's, plus overlay, plus patches".
//!
//! Only files whose content has to change are written, so that make finds little to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{cache::Cache, packages};
use crate::step;

/// Which source a kernel is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Debian's, with what `kernel/` adds
    Patched,
    /// Debian's, as it is
    Unpatched,
}

/// What `kernel/` adds to Debian's source.
#[derive(Debug)]
pub(super) struct Additions {
    /// New files, by their place in the kernel tree.
    pub(super) overlay: BTreeMap<PathBuf, Vec<u8>>,
    /// Patches, in the order in which they apply.
    pub(super) patches: BTreeMap<PathBuf, Vec<u8>>,
}

/// A kernel tree in the cache.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) path: PathBuf,
    /// What overlay and patches have replaced.
    originals: PathBuf,
    /// A list of all files that differ from Debian's.
    changed: PathBuf,
}

impl Source {
    /// What sets the names of its things apart in the cache.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Patched => "",
            Self::Unpatched => "-unpatched",
        }
    }
}

impl Additions {
    pub(super) fn read(root: &Path, source: Source) -> Result<Self> {
        if source == Source::Unpatched {
            return Ok(Self { overlay: BTreeMap::new(), patches: BTreeMap::new() });
        }
        let overlay = files(&root.join("kernel/overlay"))?;
        let mut patches = files(&root.join("kernel/patches"))?;
        patches.retain(|path, _| path.extension().is_some_and(|extension| extension == "patch"));
        Ok(Self { overlay, patches })
    }

    /// The files that the patches change.
    fn patched(&self) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        for patch in self.patches.values() {
            for line in String::from_utf8_lossy(patch).lines() {
                let path = line.strip_prefix("--- a/").or_else(|| line.strip_prefix("+++ b/"));
                paths.extend(path.map(PathBuf::from));
            }
        }
        paths
    }
}

/// All files below `directory` with their content, none if there is no such directory.
fn files(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(current) = directories.pop() {
        let entries = match fs::read_dir(&current) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("cannot list {}", current.display()))?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                found.insert(path.strip_prefix(directory)?.to_owned(), content);
            }
        }
    }
    Ok(found)
}

/// The version of Debian's source: of the package, or, where that is not installed, of what the cache has.
pub(super) fn version(cache: &Cache) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Abbrev}${Version}", packages::SOURCE]);
    let said = step::output(&mut query).unwrap_or_default();
    if let Some(version) = said.strip_prefix("ii ") {
        return Ok(version.to_owned());
    }
    if let Ok(version) = fs::read_to_string(cache.path("version")) {
        return Ok(version);
    }
    packages::ensure(packages::BUILD)?;
    let said = step::output(&mut query)?;
    let version = said.strip_prefix("ii ").map(str::to_owned);
    version.with_context(|| format!("the package {} is not installed properly: \"{said}\"", packages::SOURCE))
}

impl Tree {
    /// Unpacks the source, unless the cache has it. There is a tree for each kind of source: one tree that goes back
    /// and forth would make make compile everything each time.
    pub(super) fn open(cache: &Cache, version: &str, source: Source) -> Result<Self> {
        let name = version.replace(['/', ':', '~'], "_") + source.suffix();
        let tree = Self {
            path: cache.path(&format!("source-{name}")),
            originals: cache.directory(&format!("originals-{name}"))?,
            changed: cache.path(&format!("changed-{name}")),
        };
        if !tree.path.exists() {
            let unpacking = cache.directory("unpacking")?;
            fs::remove_dir_all(&unpacking)?;
            fs::create_dir(&unpacking)?;
            let mut tar = Command::new("tar");
            tar.args(["--extract", "--strip-components=1", "--file", "/usr/src/linux-source-6.12.tar.xz"]);
            tar.arg("--directory").arg(&unpacking);
            step::run("unpacking the kernel's source", &mut tar, &cache.log("unpack"))?;
            fs::rename(&unpacking, &tree.path)?;
        }
        fs::write(cache.path("version"), version)?;
        Ok(tree)
    }

    /// Makes the tree what `additions` say.
    pub(super) fn update(&self, cache: &Cache, additions: &Additions) -> Result<()> {
        let wanted = self.with_patches(cache, additions)?;
        let before = self.changed_files()?;
        let paths: BTreeSet<&PathBuf> = before.iter().chain(wanted.keys()).collect();
        // The list has to be right whenever this is interrupted.
        self.note_changed(paths.iter().copied())?;
        for path in paths {
            let place = self.path.join(path);
            let original = self.originals.join(path);
            if !before.contains(path) && place.exists() {
                fs::create_dir_all(original.parent().expect("a directory"))?;
                fs::copy(&place, &original)?;
            }
            match wanted.get(path) {
                Some(content) => write_if_changed(&place, content)?,
                None if original.exists() => write_if_changed(&place, &fs::read(&original)?)?,
                None => remove(&place)?,
            }
        }
        self.note_changed(wanted.keys())
    }

    /// The content of all files that differ from Debian's.
    fn with_patches(&self, cache: &Cache, additions: &Additions) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let scratch = tempfile::tempdir()?;
        let before = self.changed_files()?;
        for path in additions.patched() {
            let place = if before.contains(&path) { &self.originals } else { &self.path };
            if let Ok(content) = fs::read(place.join(&path)) {
                write_if_changed(&scratch.path().join(path), &content)?;
            }
        }
        for (path, content) in &additions.overlay {
            write_if_changed(&scratch.path().join(path), content)?;
        }
        let patch_file = tempfile::NamedTempFile::new()?;
        for (name, patch) in &additions.patches {
            fs::write(&patch_file, patch)?;
            let mut command = Command::new("patch");
            command.args([
                "-p1",
                "--batch",
                "--forward",
                "--fuzz=0",
                "--no-backup-if-mismatch",
                "--directory",
            ]);
            command.arg(scratch.path()).arg("--input").arg(patch_file.path());
            step::run(&format!("applying {}", name.display()), &mut command, &cache.log("patch"))
                .with_context(|| format!("kernel/patches/{} does not apply", name.display()))?;
        }
        files(scratch.path())
    }

    fn changed_files(&self) -> Result<BTreeSet<PathBuf>> {
        match fs::read_to_string(&self.changed) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            text => Ok(text?.lines().map(PathBuf::from).collect()),
        }
    }

    fn note_changed<'a>(&self, paths: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
        let lines: String = paths.map(|path| format!("{}\n", path.display())).collect();
        fs::write(&self.changed, lines).context("cannot write to the cache")
    }
}

/// Writes `content`, unless the file has it: its time would tell make to work.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    ensure!(!path.is_dir(), "{} is a directory, but kernel/ has a file of that name", path.display());
    fs::create_dir_all(path.parent().expect("a directory"))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str =
        "What it is for.\n\n--- a/dir/old\n+++ b/dir/old\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n";

    fn additions(overlay: &[(&str, &str)], patches: &[(&str, &str)]) -> Additions {
        let map = |files: &[(&str, &str)]| {
            files.iter().map(|(path, content)| (PathBuf::from(path), content.as_bytes().to_vec())).collect()
        };
        Additions { overlay: map(overlay), patches: map(patches) }
    }

    fn content(tree: &Tree) -> Vec<(PathBuf, String)> {
        let files = files(&tree.path).expect("a tree").into_iter();
        files.map(|(path, content)| (path, String::from_utf8(content).expect("text"))).collect()
    }

    #[test]
    fn a_tree_follows_its_additions_and_forgets_them() {
        if Command::new("patch").arg("--version").output().is_err() {
            println!("SKIP: patch is not installed");
            return;
        }
        let place = tempfile::tempdir().expect("a directory");
        let cache = Cache::at(place.path().to_owned()).expect("a cache");
        let tree = Tree {
            path: cache.directory("source").expect("a directory"),
            originals: cache.directory("originals").expect("a directory"),
            changed: cache.path("changed"),
        };
        write_if_changed(&tree.path.join("dir/old"), b"one\ntwo\nthree\n").expect("a file");
        write_if_changed(&tree.path.join("other"), b"as it was\n").expect("a file");
        let pristine = content(&tree);

        let all = additions(&[("new", "n\n"), ("other", "replaced\n")], &[("0001-a.patch", PATCH)]);
        for _ in 0..2 {
            tree.update(&cache, &all).expect("it applies");
            let expected = [("dir/old", "one\n2\nthree\n"), ("new", "n\n"), ("other", "replaced\n")]
                .map(|(path, content)| (PathBuf::from(path), content.to_owned()));
            assert_eq!(content(&tree), expected);
        }
        tree.update(&cache, &additions(&[], &[])).expect("nothing to apply");
        assert_eq!(content(&tree), pristine);

        let bad = additions(&[("dir/old", "something else\n")], &[("0001-a.patch", PATCH)]);
        let error = tree.update(&cache, &bad).expect_err("it does not apply");
        assert!(format!("{error:#}").contains("0001-a.patch does not apply"), "{error:#}");
        assert_eq!(content(&tree), pristine);
    }
}
