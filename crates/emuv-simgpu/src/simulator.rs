//! Everything that CUDA handles stand for in one process.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64},
    },
};

use emuv_cuda::{CUresult, CuError, CuResult};

use crate::{
    account::Charge,
    context::Context,
    graph::Graphs,
    handles::{self, Handles},
    kernel::{
        builtin::{BUILTINS, Builtin},
        image::Image,
    },
    machine::{Gpu, Machine},
    memory::physical::{Physical, error},
    stream::{event::Event, set::Stream},
    sync::lock,
};

/// A device as CUDA numbers it.
#[derive(Debug)]
pub struct Device {
    /// CUDA ordinal.
    pub ordinal: i32,
    /// The card.
    pub gpu: Arc<Gpu>,
    /// Its primary context.
    pub primary: Mutex<Primary>,
    /// Handle of its default memory pool.
    pub default_pool: u64,
    /// Handle of its current memory pool.
    pub current_pool: AtomicU64,
}

/// A device's primary context. Its handle stays the same when it is reset or released and retained again.
#[derive(Debug)]
pub struct Primary {
    /// The handle.
    pub handle: u64,
    /// Times it was retained and not released.
    pub retained: u32,
    /// Flags for when it is next made.
    pub flags: u32,
    /// The context, while active.
    pub context: Option<Arc<Context>>,
}

/// A loaded module.
#[derive(Debug)]
pub struct Module {
    /// Handle of the context that it was loaded into.
    pub context: u64,
    /// What is in it.
    pub image: Image,
    functions: Mutex<HashMap<&'static str, u64>>,
    globals: Mutex<BTreeMap<String, (u64, u64)>>,
}

/// A loaded library: like a module, but of no context.
#[derive(Debug)]
pub struct Library {
    /// What is in it.
    pub image: Image,
    kernels: Mutex<HashMap<&'static str, u64>>,
    /// Its module in each context that asked.
    modules: Mutex<HashMap<u64, u64>>,
}

/// What a `CUfunction` or `CUkernel` stands for.
#[derive(Debug)]
pub struct Function {
    /// What it runs.
    pub builtin: &'static Builtin,
    /// Its name, as C reads it.
    pub name: CString,
    /// Handle of the module (`CUfunction`) or library (`CUkernel`).
    pub owner: u64,
    /// Attributes that the program set.
    pub attributes: Mutex<HashMap<u32, i32>>,
    /// `cuFuncSetCacheConfig`.
    pub cache_config: AtomicU32,
}

/// A CUDA array: accounted, but without contents that could be reached.
#[derive(Debug)]
pub struct Array {
    /// Context that owns it.
    pub context: u64,
    /// Width, height and depth in elements.
    pub extent: [usize; 3],
    /// `CUarray_format`.
    pub format: u32,
    /// Channels of an element.
    pub channels: u32,
    /// Flags of a 3D array.
    pub flags: u32,
    /// What it takes of the GPU's memory.
    pub charge: Charge,
}

/// Memory of another interface that CUDA may use.
#[derive(Debug)]
pub struct External {
    /// Context that it was brought into.
    pub context: u64,
    /// The memory.
    pub physical: Arc<Physical>,
    /// Where OpenGL's memory is mapped, while it is.
    pub mapped: Mutex<Option<u64>>,
}

/// A memory pool. Allocations are made at once and freed when their stream gets there.
#[derive(Debug)]
pub struct Pool {
    /// CUDA ordinal of its device.
    pub ordinal: i32,
    /// Attributes that the program set.
    pub attributes: Mutex<HashMap<u32, u64>>,
}

/// All objects of the process.
#[derive(Debug)]
pub struct Simulator {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Visible devices, by CUDA ordinal.
    pub devices: Vec<Device>,
    /// Live contexts, primary ones included.
    pub contexts: Handles<Context>,
    /// Streams that the program created.
    pub streams: Handles<Stream>,
    /// Events.
    pub events: Handles<Event>,
    /// Graphs.
    pub graphs: Graphs,
    /// Modules.
    pub modules: Handles<Module>,
    /// Libraries.
    pub libraries: Handles<Library>,
    /// Functions and kernels.
    pub functions: Handles<Function>,
    /// Arrays.
    pub arrays: Handles<Array>,
    /// Memory of other interfaces.
    pub externals: Handles<External>,
    /// Memory pools, default pools included.
    pub pools: Handles<Pool>,
}

fn fail(code: CUresult) -> CuError {
    error(code)
}

/// The built-in kernels that an image names; an image that names none has them all.
fn kernels(image: &Image) -> Vec<&'static Builtin> {
    BUILTINS.iter().filter(|b| image.entries.is_empty() || image.entries.iter().any(|e| e == b.name)).collect()
}

fn kernel(image: &Image, name: &str) -> CuResult<&'static Builtin> {
    kernels(image).into_iter().find(|b| b.name == name).ok_or(fail(CUresult::NOT_FOUND))
}

impl Simulator {
    /// A simulator of the visible cards, given by their position in the machine.
    pub fn new(machine: Arc<Machine>, visible: &[usize]) -> Self {
        let pools = Handles::default();
        let mut devices = Vec::new();
        for (ordinal, gpu) in (0..).zip(visible.iter().filter_map(|index| machine.gpus.get(*index))) {
            let pool = pools.insert(Pool { ordinal, attributes: Mutex::default() });
            let primary = Primary { handle: handles::fresh(), retained: 0, flags: 0, context: None };
            devices.push(Device {
                ordinal,
                gpu: Arc::clone(gpu),
                primary: Mutex::new(primary),
                default_pool: pool,
                current_pool: AtomicU64::new(pool),
            });
        }
        Self {
            machine,
            devices,
            contexts: Handles::default(),
            streams: Handles::default(),
            events: Handles::default(),
            graphs: Graphs::default(),
            modules: Handles::default(),
            libraries: Handles::default(),
            functions: Handles::default(),
            arrays: Handles::default(),
            externals: Handles::default(),
            pools,
        }
    }

    /// A device.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_DEVICE` for an ordinal that no device has.
    pub fn device(&self, ordinal: i32) -> CuResult<&Device> {
        let found = usize::try_from(ordinal).ok().and_then(|index| self.devices.get(index));
        found.ok_or(fail(CUresult::CUDA_ERROR_INVALID_DEVICE))
    }

    /// Makes a context that is not primary.
    pub fn create_context(&self, device: &Device, flags: u32) -> Arc<Context> {
        let context = Context::new(&self.machine, &device.gpu, device.ordinal, flags, None);
        self.contexts.place(context.handle(), Arc::clone(&context));
        context
    }

    /// Takes a reference to a device's primary context, which is made where there is none.
    pub fn retain_primary(&self, device: &Device) -> u64 {
        let mut primary = lock(&device.primary);
        primary.retained += 1;
        if primary.context.is_none() {
            let handle = primary.handle;
            let context = Context::new(&self.machine, &device.gpu, device.ordinal, primary.flags, Some(handle));
            self.contexts.place(handle, Arc::clone(&context));
            primary.context = Some(context);
        }
        primary.handle
    }

    /// Gives a reference to a primary context back; the last one ends it.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_CONTEXT` where none is held.
    pub fn release_primary(&self, device: &Device) -> CuResult {
        let ended = {
            let mut primary = lock(&device.primary);
            primary.retained = primary.retained.checked_sub(1).ok_or(fail(CUresult::INVALID_CONTEXT))?;
            if primary.retained == 0 { primary.context.take() } else { None }
        };
        if let Some(context) = ended {
            self.end_context(&context);
        }
        Ok(())
    }

    /// Ends a primary context whatever holds it.
    pub fn reset_primary(&self, device: &Device) {
        let ended = lock(&device.primary).context.take();
        if let Some(context) = ended {
            self.end_context(&context);
        }
    }

    /// Ends a context and everything in it.
    pub fn end_context(&self, context: &Context) {
        let handle = context.handle();
        self.contexts.remove(handle);
        self.graphs.captures.end_all_of(handle);
        context.destroy();
        self.streams.remove_all(|stream| stream.engine.context == handle);
        self.events.remove_all(|event| event.engine.context == handle);
        self.arrays.remove_all(|array| array.context == handle);
        self.externals.remove_all(|external| external.context == handle);
        self.modules.remove_all(|module| module.context == handle);
    }

    /// Loads a module into a context. Its global variables take memory there.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` when there is no room for the globals.
    pub fn load_module(&self, context: &Context, image: Image) -> CuResult<u64> {
        let mut globals = BTreeMap::new();
        for (name, bytes) in &image.globals {
            let allocation = context.allocate((*bytes).max(1), 0)?;
            context.fill(allocation, 0)?;
            globals.insert(name.clone(), (allocation.base, *bytes));
        }
        Ok(self.modules.insert(Module {
            context: context.handle(),
            image,
            functions: Mutex::default(),
            globals: Mutex::new(globals),
        }))
    }

    /// Ends a module: its functions and globals go with it.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such module.
    pub fn unload_module(&self, handle: u64) -> CuResult {
        let module = self.modules.remove(handle).ok_or(fail(CUresult::CUDA_ERROR_INVALID_HANDLE))?;
        for function in lock(&module.functions).values() {
            self.functions.remove(*function);
        }
        for (base, _) in lock(&module.globals).values() {
            // The context may have gone with the memory.
            let _ = self.machine.heap.free(&self.machine.space, *base);
        }
        Ok(())
    }

    /// A module.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such module.
    pub fn module(&self, handle: u64) -> CuResult<Arc<Module>> {
        self.modules.get(handle).ok_or(fail(CUresult::CUDA_ERROR_INVALID_HANDLE))
    }

    /// A library.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such library.
    pub fn library(&self, handle: u64) -> CuResult<Arc<Library>> {
        self.libraries.get(handle).ok_or(fail(CUresult::CUDA_ERROR_INVALID_HANDLE))
    }

    /// A function or kernel.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such function.
    pub fn function(&self, handle: u64) -> CuResult<Arc<Function>> {
        self.functions.get(handle).ok_or(fail(CUresult::CUDA_ERROR_INVALID_HANDLE))
    }

    fn intern(&self, known: &Mutex<HashMap<&'static str, u64>>, builtin: &'static Builtin, owner: u64) -> u64 {
        *lock(known).entry(builtin.name).or_insert_with(|| {
            self.functions.insert(Function {
                builtin,
                name: CString::new(builtin.name).unwrap_or_default(),
                owner,
                attributes: Mutex::default(),
                cache_config: AtomicU32::new(0),
            })
        })
    }

    /// The function of that name in a module.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_FOUND` where it has none.
    pub fn module_function(&self, handle: u64, name: &str) -> CuResult<u64> {
        let module = self.module(handle)?;
        Ok(self.intern(&module.functions, kernel(&module.image, name)?, handle))
    }

    /// All functions of a module.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such module.
    pub fn module_functions(&self, handle: u64) -> CuResult<Vec<u64>> {
        let module = self.module(handle)?;
        Ok(kernels(&module.image).into_iter().map(|b| self.intern(&module.functions, b, handle)).collect())
    }

    /// Address and size of a global variable.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_FOUND` where the module has none of that name.
    pub fn module_global(&self, handle: u64, name: &str) -> CuResult<(u64, u64)> {
        let module = self.module(handle)?;
        let found = lock(&module.globals).get(name).copied();
        found.ok_or(fail(CUresult::NOT_FOUND))
    }

    /// Address of a global variable beside a function or kernel, in a context; `None` where there is none.
    ///
    /// # Errors
    /// As [`Self::load_module`]: a library's variables come into being with its first kernel in the context.
    pub fn global_of(&self, function: &Function, context: &Context, name: &str) -> CuResult<Option<u64>> {
        let module = match self.libraries.get(function.owner) {
            Some(library) if library.image.globals.iter().any(|(global, _)| global == name) => {
                self.library_module(function.owner, context)?
            }
            Some(_) => return Ok(None),
            None => function.owner,
        };
        Ok(self.module_global(module, name).ok().map(|(address, _)| address))
    }

    /// Loads a library.
    pub fn load_library(&self, image: Image) -> u64 {
        self.libraries.insert(Library { image, kernels: Mutex::default(), modules: Mutex::default() })
    }

    /// Ends a library and its modules.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such library.
    pub fn unload_library(&self, handle: u64) -> CuResult {
        let library = self.libraries.remove(handle).ok_or(fail(CUresult::CUDA_ERROR_INVALID_HANDLE))?;
        for kernel in lock(&library.kernels).values() {
            self.functions.remove(*kernel);
        }
        for module in lock(&library.modules).values() {
            // A module goes with its context.
            let _ = self.unload_module(*module);
        }
        Ok(())
    }

    /// The kernel of that name in a library.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_FOUND` where it has none.
    pub fn library_kernel(&self, handle: u64, name: &str) -> CuResult<u64> {
        let library = self.library(handle)?;
        Ok(self.intern(&library.kernels, kernel(&library.image, name)?, handle))
    }

    /// All kernels of a library.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE` where there is no such library.
    pub fn library_kernels(&self, handle: u64) -> CuResult<Vec<u64>> {
        let library = self.library(handle)?;
        Ok(kernels(&library.image).into_iter().map(|b| self.intern(&library.kernels, b, handle)).collect())
    }

    /// A library's module in a context, which is loaded where it is not yet.
    ///
    /// # Errors
    /// As [`Self::load_module`].
    pub fn library_module(&self, handle: u64, context: &Context) -> CuResult<u64> {
        let library = self.library(handle)?;
        let mut modules = lock(&library.modules);
        if let Some(module) = modules.get(&context.handle())
            && self.modules.get(*module).is_some()
        {
            return Ok(*module);
        }
        let module = self.load_module(context, library.image.clone())?;
        modules.insert(context.handle(), module);
        Ok(module)
    }
}
