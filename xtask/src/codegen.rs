//! Derives Rust types, the function tables and the `cuGetProcAddress` map from the public headers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use quote::ToTokens;
use syn::{Item, visit_mut::VisitMut};

use crate::headers;

/// Whether to write the generated files or to compare them with what is committed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Write the files.
    Write,
    /// Fail if a file differs.
    Check,
}

const CUDA_HEADERS: &str = "#include <cuda.h>\n#include <vdpau/vdpau.h>\n#include <cudaProfiler.h>\n#include <cudaGL.h>\n#include <cudaVDPAU.h>\n\
#include <cudaEGL.h>\n#include <cudaTypedefs.h>\n#include <cudaProfilerTypedefs.h>\n#include <cudaGLTypedefs.h>\n\
#include <cudaVDPAUTypedefs.h>\n#include <cudaEGLTypedefs.h>\n";

/// NVML functions that emuV calls or answers itself; every other export is passed through by name.
const NVML_TYPED: &str = "nvml(Init_v2|Shutdown|ErrorString|SystemGet(DriverVersion|NVMLVersion|CudaDriverVersion_v2)|Device\
(GetCount(_v2)?|GetHandleByIndex(_v2)?|GetHandleByUUID|GetUUID|GetIndex|GetName|GetMemoryInfo|GetMemoryInfo_v2|\
GetBAR1MemoryInfo|GetPciInfo_v3|Get(Curr|Max)PcieLink(Generation|Width)|Get(Compute|Graphics)RunningProcesses(_v[23])?|\
(Get|Set)MemoryLimits_v1|GetUtilizationRates|GetTemperature|GetPowerUsage|GetMinorNumber))";

/// Exports observed on real drivers (names only), so that functions without a public signature exist too.
const OBSERVED_CUDA: &str = "crates/emuv-cuda/data/libcuda-580.159.04.exports";
const OBSERVED_NVML: &str = "crates/emuv-cuda/data/libnvidia-ml-580.159.04.exports";

/// The debugger's back channel (`cudbg*`) holds data objects that a debugger writes in the real driver;
/// a second definition would mislead it.
const NOT_EXPORTED: &str = "cudbg";

/// Generates everything, then writes or compares it.
pub fn run(mode: Mode) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("xtask lies in the workspace")?;
    let work = tempfile::tempdir()?;
    let include = headers::fetch(work.path())?;

    let (cuda_types, cuda) = cuda_interface(&include)?;
    let (nvml_types, nvml) = nvml_interface(&include)?;
    let nvml_names = nvml_names(&fs::read_to_string(include.join("nvml.h"))?);

    let mut cuda_exports: BTreeSet<String> = cuda.iter().map(|f| f.symbol.clone()).collect();
    cuda_exports.extend(observed(root, OBSERVED_CUDA)?);
    let mut nvml_exports = nvml_names;
    nvml_exports.extend(observed(root, OBSERVED_NVML)?);

    let files = [
        ("cuda_types.rs", cuda_types),
        ("cuda_functions.rs", function_table("cuda_functions", &cuda)),
        ("proc_address.rs", proc_address(&cuda)),
        ("nvml_types.rs", nvml_types),
        ("nvml_functions.rs", function_table("nvml_functions", &nvml)),
        ("exports.rs", export_tables(&cuda_exports, &nvml_exports)),
    ];
    let folder = root.join("crates/emuv-cuda/src/gen");
    let mut stale = Vec::new();
    for (name, text) in files {
        let path = folder.join(name);
        match mode {
            Mode::Write => fs::write(&path, text)?,
            Mode::Check if fs::read_to_string(&path).unwrap_or_default() != text => stale.push(name),
            Mode::Check => {}
        }
    }
    if !stale.is_empty() {
        bail!("generated files are not current: {stale:?}; run `cargo xtask codegen`");
    }
    Ok(())
}

/// One exported function: the name that programs ask `cuGetProcAddress` for, the interface version at
/// which it appeared, and the symbol that the driver exports for it.
struct Function {
    base: String,
    version: u32,
    per_thread: bool,
    symbol: String,
    /// `name: type, …` as Rust text.
    parameters: String,
    result: String,
}

fn cuda_interface(include: &Path) -> Result<(String, Vec<Function>)> {
    let bindings = bindgen::Builder::default()
        .header_contents("emuv_cuda.h", CUDA_HEADERS)
        .clang_arg(format!("-I{}", include.display()))
        .clang_arg("-D__CUDA_API_VERSION_INTERNAL")
        .allowlist_type("CU.*|cu.*|CUDA_.*|PFN_cu.*")
        .generate_comments(false)
        .layout_tests(false)
        .derive_default(false)
        .prepend_enum_name(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .newtype_enum("cudaError_enum")
        .generate()
        .context("bindgen cannot read the CUDA headers")?
        .to_string();
    let file = syn::parse_file(&bindings)?;
    let mut types = Vec::new();
    let mut raw = Vec::new();
    for item in file.items {
        match &item {
            Item::Type(alias) if alias.ident.to_string().starts_with("PFN_") => {
                if let Some(function) = function_pointer(&alias.ident.to_string(), &alias.ty)? {
                    raw.push(function);
                }
            }
            _ => types.push(item),
        }
    }
    Ok((render_types(types), with_symbols(raw)))
}

/// Splits `PFN_<base>_v<version>[_ptds|_ptsz]`. Unversioned aliases (`PFN_cuMemAlloc`) yield `None`.
fn split_typedef(name: &str) -> Option<(String, u32, String)> {
    let name = name.strip_prefix("PFN_")?;
    let (name, suffix) = match name.strip_suffix("_ptsz") {
        Some(rest) => (rest, "_ptsz"),
        None => name.strip_suffix("_ptds").map_or((name, ""), |rest| (rest, "_ptds")),
    };
    let (base, version) = name.rsplit_once("_v")?;
    Some((base.to_owned(), version.parse().ok()?, suffix.to_owned()))
}

/// A typedef as read: base name, version, suffix, parameters, result.
type Typedef = (String, u32, String, String, String);

fn function_pointer(name: &str, ty: &syn::Type) -> Result<Option<Typedef>> {
    let Some((base, version, suffix)) = split_typedef(name) else { return Ok(None) };
    let text = tidy_type(ty);
    let inner = text
        .strip_prefix("Option<unsafe extern \"C\" fn(")
        .and_then(|t| t.strip_suffix('>'))
        .with_context(|| format!("{name} is no function pointer: {text}"))?;
    let (parameters, result) = inner.rsplit_once(") -> ").with_context(|| format!("{name} returns nothing"))?;
    Ok(Some((base, version, suffix, parameters.trim_end_matches(',').trim().to_owned(), result.to_owned())))
}

/// The driver exports the n-th interface version of a function under `<base>_v<n>` (plain for the
/// first), and the per-thread-stream form of it with the suffix appended. This rule, checked against
/// `cuGetProcAddress` of driver 580 (671 entries, no exception), gives the symbols.
fn with_symbols(raw: Vec<Typedef>) -> Vec<Function> {
    let mut plain: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for (base, version, suffix, ..) in &raw {
        if suffix.is_empty() {
            plain.entry(base.clone()).or_default().insert(*version);
        }
    }
    let mut functions: Vec<Function> = raw
        .into_iter()
        .map(|(base, version, suffix, parameters, result)| {
            let number = plain.get(&base).map_or(0, |versions| versions.range(..=version).count());
            let ordinal = if number <= 1 { String::new() } else { format!("_v{number}") };
            let symbol = format!("{base}{ordinal}{suffix}");
            Function { per_thread: !suffix.is_empty(), base, version, symbol, parameters, result }
        })
        .collect();
    functions.sort_by(|a, b| (&a.base, a.version, a.per_thread).cmp(&(&b.base, b.version, b.per_thread)));
    functions
}

fn nvml_interface(include: &Path) -> Result<(String, Vec<Function>)> {
    let bindings = bindgen::Builder::default()
        .header_contents("emuv_nvml.h", "#define NVML_NO_UNVERSIONED_FUNC_DEFS\n#include <nvml.h>\n")
        .clang_arg(format!("-I{}", include.display()))
        .allowlist_function(NVML_TYPED)
        .allowlist_type("nvmlMemory_v2_t|nvmlMemory_t")
        .generate_comments(false)
        .layout_tests(false)
        .prepend_enum_name(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .newtype_enum("nvmlReturn_enum")
        .generate()
        .context("bindgen cannot read nvml.h")?
        .to_string();
    let mut types = Vec::new();
    let mut functions = Vec::new();
    for item in syn::parse_file(&bindings)?.items {
        let Item::ForeignMod(block) = item else {
            types.push(item);
            continue;
        };
        for item in block.items {
            let syn::ForeignItem::Fn(function) = item else { continue };
            let symbol = function.sig.ident.to_string();
            let parameters: Vec<String> = function.sig.inputs.iter().map(tidy_tokens).collect();
            let result = match &function.sig.output {
                syn::ReturnType::Default => bail!("{symbol} returns nothing"),
                syn::ReturnType::Type(_, ty) => tidy_type(ty),
            };
            functions.push(Function {
                base: symbol.clone(),
                version: 0,
                per_thread: false,
                symbol,
                parameters: parameters.join(", "),
                result,
            });
        }
    }
    functions.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    Ok((render_types(types), functions))
}

/// Every function that nvml.h declares, by name.
fn nvml_names(header: &str) -> BTreeSet<String> {
    header
        .lines()
        .filter(|line| line.contains(" DECLDIR ") && !line.trim_start().starts_with(['*', '#', '/']))
        .filter_map(|line| line.split(" DECLDIR ").nth(1))
        .filter_map(|rest| rest.split('(').next())
        .map(|name| name.trim().trim_start_matches('*').to_owned())
        .filter(|name| name.starts_with("nvml"))
        .collect()
}

fn observed(root: &Path, file: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
    Ok(text.lines().map(str::to_owned).filter(|name| !name.starts_with(NOT_EXPORTED)).collect())
}

/// Shortens the paths that bindgen writes and drops its attributes' noise.
struct Shorten;

impl VisitMut for Shorten {
    fn visit_path_mut(&mut self, path: &mut syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let drop = match names.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["std", "option", "Option"] => 2,
            ["std", "os", "raw", _] => 3,
            _ => 0,
        };
        if drop > 0 {
            path.leading_colon = None;
            path.segments = path.segments.iter().skip(drop).cloned().collect();
        }
        syn::visit_mut::visit_path_mut(self, path);
    }
}

fn tidy_type(ty: &syn::Type) -> String {
    let mut ty = ty.clone();
    Shorten.visit_type_mut(&mut ty);
    tidy_tokens(&ty)
}

/// Token text with rustfmt-like spacing, by way of a type alias that prettyplease can print.
fn tidy_tokens(tokens: &impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string();
    let (prefix, ty) = match text.split_once(" : ") {
        Some((name, ty)) if !name.contains(' ') => (format!("{name}: "), ty.to_owned()),
        _ => (String::new(), text),
    };
    let Ok(mut file) = syn::parse_file(&format!("type T = {ty};")) else { return format!("{prefix}{ty}") };
    Shorten.visit_file_mut(&mut file);
    let printed = prettyplease::unparse(&file);
    let flat: Vec<&str> = printed.split_whitespace().collect();
    let flat = flat.join(" ").replace("( ", "(").replace(", )", ")").replace("< ", "<").replace(", >", ">");
    let body = flat.trim_start_matches("type T = ").trim_end_matches(';');
    format!("{prefix}{body}")
}

const BANNER: &str =
    "// Written by `cargo xtask codegen` from NVIDIA's public headers (signatures only). Do not edit.\n";

fn render_types(items: Vec<Item>) -> String {
    let mut file = syn::File { shebang: None, frontmatter: None, attrs: Vec::new(), items };
    Shorten.visit_file_mut(&mut file);
    format!("{BANNER}\nuse core::ffi::*;\n\n{}", prettyplease::unparse(&file))
}

fn function_table(name: &str, functions: &[Function]) -> String {
    let mut text = format!(
        "{BANNER}\n/// Calls `$callback!` with every typed function of the interface, one `fn name(args) -> result;` each.\n\
         macro_rules! {name} {{\n    ($callback:ident) => {{\n        $callback! {{\n"
    );
    let mut seen = BTreeSet::new();
    for function in functions {
        if seen.insert(&function.symbol) {
            let _ =
                writeln!(text, "            fn {}({}) -> {};", function.symbol, function.parameters, function.result);
        }
    }
    text.push_str("        }\n    };\n}\n");
    text
}

fn proc_address(functions: &[Function]) -> String {
    let mut text = format!(
        "{BANNER}\nuse crate::proc_address::Entry;\n\n/// Sorted by base name, version, per-thread flag.\n\
         #[rustfmt::skip]\npub static ENTRIES: &[Entry] = &[\n"
    );
    for f in functions {
        let _ = writeln!(
            text,
            "    Entry {{ base: \"{}\", version: {}, per_thread: {}, symbol: \"{}\" }},",
            f.base, f.version, f.per_thread, f.symbol
        );
    }
    text.push_str("];\n");
    text
}

fn export_tables(cuda: &BTreeSet<String>, nvml: &BTreeSet<String>) -> String {
    let mut text = BANNER.to_owned();
    for (name, library, exports) in [("CUDA", "libcuda.so.1", cuda), ("NVML", "libnvidia-ml.so.1", nvml)] {
        let _ = writeln!(text, "\n/// Every symbol that {library} exports, sorted.\npub static {name}: &[&str] = &[");
        for symbol in exports {
            let _ = writeln!(text, "    \"{symbol}\",");
        }
        text.push_str("];\n");
    }
    text
}
