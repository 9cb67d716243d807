//! Writes the pass-through exports and the table of handled ones from `handled.list`.

use std::{collections::BTreeMap, env, error::Error, fmt::Write as _, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=handled.list");
    println!("cargo:rerun-if-changed=build.rs");
    // Programs find the library by this name: `dlopen("libcuda.so.1")` gives the preloaded one.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");

    let mut handled = BTreeMap::new();
    for line in fs::read_to_string("handled.list")?.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some((symbol, module)) = line.split_once(' ') {
            handled.insert(symbol.to_owned(), module.trim().to_owned());
        }
    }
    let (cuda, nvml) = (emuv_cuda::exports::CUDA, emuv_cuda::exports::NVML);
    let mut passed = String::new();
    let mut names = String::new();
    let mut table = String::new();
    for (index, symbol) in cuda.iter().chain(nvml).enumerate() {
        writeln!(names, "c\"{symbol}\",")?;
        match handled.remove(*symbol) {
            None => writeln!(passed, "{index} {symbol};")?,
            Some(module) => {
                let signatures = if index < cuda.len() { "signatures" } else { "nvml_signatures" };
                // The coercion checks the entry's type against the headers'.
                writeln!(
                    table,
                    "Handled {{ slot: {index}, entry: {{ let entry: emuv_cuda::{signatures}::{symbol} = \
                     crate::entry::{module}::{symbol}; entry as *const c_void }} }},"
                )?;
            }
        }
    }
    if let Some(symbol) = handled.keys().next() {
        return Err(format!("handled.list names {symbol}, which no driver exports").into());
    }
    let out = env::var("OUT_DIR")?;
    let count = cuda.len() + nvml.len();
    let text = format!(
        "/// Exports of libcuda.so.1; those of libnvidia-ml.so.1 follow in the slots.\n\
         pub(crate) const CUDA_SLOTS: usize = {};\n\
         /// All exports.\npub(crate) const SLOT_COUNT: usize = {count};\n\
         /// The symbol of each slot.\npub(crate) static NAMES: [&CStr; SLOT_COUNT] = [{names}];\n",
        cuda.len()
    );
    fs::write(Path::new(&out).join("slots.rs"), text)?;
    fs::write(Path::new(&out).join("passed.rs"), format!("passed! {{\n{passed}}}\n"))?;
    let table = format!(
        "/// Every handled export.\n#[allow(clippy::as_conversions)]\npub(crate) fn handled() -> Vec<Handled> {{ vec![{table}] }}\n"
    );
    fs::write(Path::new(&out).join("handled.rs"), table)?;
    Ok(())
}
