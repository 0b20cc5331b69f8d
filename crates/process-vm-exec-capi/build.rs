//! How the shared library is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let [major, minor] = ["CARGO_PKG_VERSION_MAJOR", "CARGO_PKG_VERSION_MINOR"].map(env);
    // As cargo-c does it: while the major number is 0, the minor one changes with the ABI.
    let abi = if major == "0" { format!("0.{minor}") } else { major };
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libprocess_vm_exec.so.{abi}");
    // Its threads stay until the process ends, so its code has to: dlclose(3) must not unmap it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
