//! Names the library `libcuda.so.1` and writes two generated tables: the address of every exported symbol
//! (for `cuGetProcAddress`), and a "not supported" function for each symbol without an implementation.
//!
//! What is implemented is found by reading `src/entry`: inside the entry macros a line that starts with
//! `fn` (after `early` or `untyped`, if any) lists the symbols that its body serves, separated by ` / `.

use std::{collections::BTreeMap, env, error::Error, fmt::Write as _, fs, path::Path};

use emuv_cuda::exports;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/entry");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // Stream workers run the library's code until the process ends: it must never be unmapped.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    let mut implemented = BTreeMap::new();
    for entry in fs::read_dir("src/entry")? {
        let path = entry?.path();
        let module = path.file_stem().and_then(|s| s.to_str()).ok_or("a file name in src/entry is not text")?;
        for symbol in symbols(&fs::read_to_string(&path)?) {
            if let Some(other) = implemented.insert(symbol.clone(), module.to_owned()) {
                return Err(format!("{symbol} is implemented in {other}.rs and in {module}.rs").into());
            }
        }
    }
    let known = |name: &str| exports::CUDA.contains(&name) || exports::NVML.contains(&name);
    if let Some(name) = implemented.keys().find(|name| !known(name)) {
        return Err(format!("{name} is implemented, but the real libraries export no such symbol").into());
    }
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("symbols.rs"), render(&implemented)?)?;
    Ok(())
}

fn symbols(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in source.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("untyped ").unwrap_or(line);
        let Some(rest) = line.strip_prefix("fn ") else { continue };
        if !(rest.starts_with("cu") || rest.starts_with("nvml")) {
            continue;
        }
        let names = rest.split('(').next().unwrap_or("");
        found.extend(names.split('/').map(|name| name.trim().to_owned()));
    }
    found
}

fn render(implemented: &BTreeMap<String, String>) -> Result<String, std::fmt::Error> {
    let mut text = String::from("/// What every other symbol does.\npub mod fallback {\n");
    let lists = [(exports::CUDA, "cuda_fallback"), (exports::NVML, "nvml_fallback")];
    for (names, macro_name) in lists {
        for name in names.iter().filter(|name| !implemented.contains_key(**name)) {
            writeln!(text, "    crate::entry::abi::{macro_name}!({name});")?;
        }
    }
    text.push_str("}\n\n/// Every CUDA symbol and where its code is.\n");
    text.push_str("pub(crate) static CUDA_SYMBOLS: &[crate::entry::Symbol] = &[\n");
    for name in exports::CUDA {
        let module = implemented.get(*name).map_or("fallback", String::as_str);
        let path = if module == "fallback" { "fallback".to_owned() } else { format!("crate::entry::{module}") };
        writeln!(text, "    (\"{name}\", || {path}::{name} as *const () as usize),")?;
    }
    text.push_str("];\n");
    Ok(text)
}
