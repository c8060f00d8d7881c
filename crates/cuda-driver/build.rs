//! Puts an empty `libcuda.so` on the link path, for the `-lcuda` that `cust` asks for. It is an archive with no members,
//! which every linker takes by that name; GNU ld refuses an empty linker script.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo:rustc-link-search=native={root}/link/lib64");
    println!("cargo:rerun-if-changed=link/lib64/libcuda.so");
}
