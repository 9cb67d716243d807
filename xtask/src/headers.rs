//! Fetches the public CUDA and NVML headers. They are read here and never kept: only signatures
//! derived from them are committed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The PyPI wheels that carry the headers. Raising a version here and running `cargo xtask codegen`
/// is how a new driver interface is taken in.
const WHEELS: [&str; 2] = ["nvidia-cuda-runtime==13.5.37", "nvidia-nvml-dev==13.5.37"];

/// Headers that the wheels' own headers include and the wheels lack (graphics interfaces, the profiler).
/// Only the widths of these types matter for a calling convention.
const STUBS: [(&str, &str); 5] = [
    ("cudaProfiler.h", "#include <cuda.h>\ntypedef unsigned int CUoutput_mode;\n"),
    ("GL/gl.h", "typedef unsigned int GLuint; typedef unsigned int GLenum;\n"),
    (
        "EGL/egl.h",
        "typedef int EGLint; typedef void *EGLImageKHR; typedef void *EGLStreamKHR; typedef void *EGLSyncKHR;\n",
    ),
    ("EGL/eglext.h", "#include <EGL/egl.h>\n"),
    (
        "vdpau/vdpau.h",
        "#include <stdint.h>\ntypedef uint32_t VdpDevice; typedef uint32_t VdpFuncId; typedef uint32_t VdpStatus;\n\
         typedef uint32_t VdpVideoSurface; typedef uint32_t VdpOutputSurface;\n\
         typedef VdpStatus VdpGetProcAddress(VdpDevice device, VdpFuncId id, void **pointer);\n",
    ),
];

/// Downloads the wheels into `work` and returns the include directory.
pub fn fetch(work: &Path) -> Result<PathBuf> {
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(work)
        .args(WHEELS))?;
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "whl") {
            run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&path).arg(work))?;
        }
    }
    let include = work.join("nvidia/cu13/include");
    for name in ["cuda.h", "cudaTypedefs.h", "nvml.h"] {
        if !include.join(name).is_file() {
            bail!("the wheels {WHEELS:?} hold no {name} under nvidia/cu13/include");
        }
    }
    for (name, text) in STUBS {
        let path = include.join(name);
        let folder = path.parent().context("a stub header has a folder")?;
        fs::create_dir_all(folder)?;
        fs::write(&path, text)?;
    }
    Ok(include)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
