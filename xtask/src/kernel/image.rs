//! A kernel for each state of `kernel/`, from the cache or built for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{
    cache::{self, Cache},
    config::{Config, Wanted},
    packages,
    source::{self, Additions, Source, Tree},
};
use crate::step;

/// Finished kernels that the cache keeps.
const KEPT_IMAGES: usize = 12;

/// A finished kernel.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) config: Config,
    /// What kind of kernel it is: `plain`, `plain-unpatched`.
    pub(super) name: String,
    /// The hash of everything that went in.
    pub(super) key: String,
    pub(super) path: PathBuf,
}

/// Builds a kernel, unless the cache has it.
pub(super) fn build(root: &Path, cache: &Cache, config: Config, source: Source) -> Result<Image> {
    let _lock = cache.lock("")?;
    let version = source::version(cache)?;
    let additions = Additions::read(root, source)?;
    let wanted = Wanted::read(root, config, source)?;
    let key = key(&version, &additions, &wanted);
    let name = format!("{config}{}", source.suffix());
    let directory = cache.path(&format!("images/{name}-{key}"));
    let image = Image { config, name: name.clone(), key, path: directory.join("bzImage") };
    if image.path.exists() {
        cache::touch(&directory)?;
        return Ok(image);
    }
    let started = Instant::now();
    eprintln!("the {name} kernel {} is not in the cache", image.key);
    packages::ensure(packages::BUILD)?;
    let bindgen = packages::bindgen(cache)?;
    let tree = Tree::open(cache, &version, source)?;
    tree.update(cache, &additions)?;
    let objects = cache.directory(&format!("objects-{name}"))?;
    configure(cache, &objects, &wanted, make(&tree, &objects, &bindgen))?;
    let mut kernel = make(&tree, &objects, &bindgen);
    kernel.arg(format!("-j{}", thread::available_parallelism()?)).arg("bzImage");
    step::run(&format!("building the {name} kernel"), &mut kernel, &cache.log(&format!("make-{name}")))?;
    // The name appears when everything is there.
    let unfinished = cache.directory("images/unfinished")?;
    for (file, name) in
        [("arch/x86/boot/bzImage", "bzImage"), (".config", "config"), ("System.map", "System.map")]
    {
        fs::copy(objects.join(file), unfinished.join(name))
            .with_context(|| format!("make has made no {file}"))?;
    }
    fs::rename(&unfinished, &directory)?;
    cache.prune("images", KEPT_IMAGES)?;
    eprintln!("the {name} kernel is ready after {} s: {}", started.elapsed().as_secs(), image.path.display());
    Ok(image)
}

fn make(tree: &Tree, objects: &Path, bindgen: &Path) -> Command {
    let mut make = Command::new("make");
    // cargo's own environment would tell rustup's rustc from the kernel's, and whoever called cargo from make.
    for variable in
        ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "MAKEFLAGS", "MFLAGS", "LD_LIBRARY_PATH"]
    {
        make.env_remove(variable);
    }
    make.arg("-C").arg(&tree.path).arg(format!("O={}", objects.display()));
    make.args(["RUSTC=/usr/bin/rustc", "HOSTRUSTC=/usr/bin/rustc"])
        .arg(format!("BINDGEN={}", bindgen.display()));
    make.args(["KBUILD_BUILD_USER=xtask", "KBUILD_BUILD_HOST=localhost"]);
    make
}

/// Makes the configuration. One that has not changed keeps its time, so that make finds nothing to do.
fn configure(cache: &Cache, objects: &Path, wanted: &Wanted, mut make: Command) -> Result<()> {
    let fragment = objects.join("wanted.config");
    fs::write(&fragment, wanted.text())?;
    make.env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig");
    step::run("configuring", &mut make, &cache.log("configure"))?;
    wanted.check(&fs::read_to_string(objects.join(".config"))?)
}

fn key(version: &str, additions: &Additions, wanted: &Wanted) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    };
    add(version.as_bytes());
    add(wanted.text().as_bytes());
    for files in [&additions.overlay, &additions.patches] {
        add(&files.len().to_le_bytes());
        for (path, content) in files {
            add(path.as_os_str().as_encoded_bytes());
            add(content);
        }
    }
    short(&hash.finalize())
}

/// Enough of a hash to tell things apart.
pub(super) fn short(hash: &[u8]) -> String {
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
