//! Calls into a UDF's library: the interface of `arroyo-udf-plugin` 0.2.
//!
//! The types here are laid out as that crate's, under `repr(C)`; arrays cross as Arrow's C data interface, and the future of a send as `async-ffi`'s. A library has its own
//! copy of the standard library, so that a panic must not come out of it: the plugin catches those of scalar functions and aggregates; one in an asynchronous function
//! ends the plugin's thread, which [`AsyncRuntime`] notices.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::future::Future as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, make_array};
use arrow::datatypes::UInt64Type;
use arrow::error::ArrowError;
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use async_ffi::FfiFuture;
use libloading::Library;

use super::{AsyncOptions, UdfError};

/// An array that crosses.
#[repr(C)]
struct FfiArraySchema(FFI_ArrowArray, FFI_ArrowSchema);

/// Arrays that cross: a `Vec` in parts.
#[repr(C)]
struct FfiArrays {
    pointer: *mut FfiArraySchema,
    length: usize,
    capacity: usize,
    error: bool,
}

#[repr(C)]
#[expect(dead_code, reason = "libraries make them")]
enum RunResult {
    Ok(FfiArraySchema),
    /// The function panicked.
    Err,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Handle(*mut u8);

#[repr(C)]
#[expect(dead_code, reason = "libraries make them")]
enum Drained {
    Data(FfiArrays),
    None,
    /// The thread panicked while it wrote down a result, which it does when a call took too long.
    Error,
}

type Run = unsafe extern "C-unwind" fn(FfiArrays) -> RunResult;
type Start = unsafe extern "C-unwind" fn(bool, u64, u32) -> Handle;
type Send = unsafe extern "C-unwind" fn(Handle, u64, FfiArrays) -> FfiFuture<bool>;
type Drain = unsafe extern "C-unwind" fn(Handle) -> Drained;
type Stop = unsafe extern "C-unwind" fn(Handle);
/// Of the library's own frame (see `build`).
type IsRunning = unsafe extern "C-unwind" fn(Handle) -> bool;

impl FfiArrays {
    /// The receiver frees the memory as a `Vec` of its own. A library allocates by the system's allocator, as every one does that names no other; this process may have
    /// another, so what crosses is taken from the system here, too.
    fn new(arrays: &[ArrayRef]) -> Result<FfiArrays, ArrowError> {
        let converted = arrays.iter().map(|array| to_ffi(&array.to_data())).collect::<Result<Vec<_>, _>>()?;
        let layout = layout(converted.len());
        // SAFETY: a UDF has at least one argument, so the layout is not empty.
        let pointer = unsafe { System.alloc(layout) }.cast::<FfiArraySchema>();
        if pointer.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        let length = converted.len();
        for (place, (array, schema)) in converted.into_iter().enumerate() {
            // SAFETY: the memory has room for `length` values, and is aligned for them.
            unsafe { pointer.add(place).write(FfiArraySchema(array, schema)) };
        }
        Ok(FfiArrays { pointer, length, capacity: length, error: false })
    }

    /// What a library gave.
    ///
    /// # Safety
    /// The parts are those of a `Vec` that was allocated by the system's allocator.
    unsafe fn into_arrays(self) -> Result<Vec<ArrayRef>, ArrowError> {
        // SAFETY: each value is read once, and the memory freed behind it, which drops nothing.
        let received: Vec<FfiArraySchema> = (0..self.length).map(|place| unsafe { self.pointer.add(place).read() }).collect();
        if self.capacity > 0 {
            // SAFETY: see above.
            unsafe { System.dealloc(self.pointer.cast(), layout(self.capacity)) };
        }
        received.into_iter().map(|array| array.into_array()).collect()
    }
}

fn layout(length: usize) -> Layout {
    Layout::array::<FfiArraySchema>(length).expect("a function's arguments fit into memory")
}

impl FfiArraySchema {
    fn into_array(self) -> Result<ArrayRef, ArrowError> {
        // SAFETY: the plugin made both by Arrow's own implementation of the interface.
        unsafe { from_ffi(self.0, &self.1) }.map(make_array)
    }
}

/// A symbol of a library that is never unloaded.
///
/// # Safety
/// The symbol has the type.
unsafe fn symbol<T: Copy>(library: &Library, path: &Path, name: &str) -> Result<T, UdfError> {
    // SAFETY: as the caller says.
    let symbol = unsafe { library.get::<T>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|e| UdfError::new(format!("{}: {e}; remove it, so that it is built anew", path.display())))
}

fn open(path: &Path) -> Result<&'static Library, UdfError> {
    // SAFETY: the library was built here, of a file that the user trusts as much as a stage.
    let library = unsafe { Library::new(path) };
    let library = library.map_err(|e| UdfError::new(format!("{}: {e}; remove it, so that it is built anew", path.display())))?;
    // It stays: arrays that it made are released by its code, and it may have threads.
    Ok(Box::leak(Box::new(library)))
}

/// A scalar function or an aggregate.
#[derive(Clone, Copy)]
pub(crate) struct SyncLibrary {
    run: Run,
}

impl SyncLibrary {
    /// Loads it.
    ///
    /// # Errors
    /// If it is no library, or another one.
    pub fn load(path: &Path) -> Result<SyncLibrary, UdfError> {
        // SAFETY: `#[udf]` of the plugin over a function that is not async makes this.
        Ok(SyncLibrary { run: unsafe { symbol(open(path)?, path, "__run")? } })
    }

    /// Calls it; `None` if it panicked.
    ///
    /// # Errors
    /// If arrays cannot cross.
    pub fn run(&self, arguments: &[ArrayRef]) -> Result<Option<ArrayRef>, ArrowError> {
        let arguments = FfiArrays::new(arguments)?;
        // SAFETY: the arguments are of the types of the signature.
        match unsafe { (self.run)(arguments) } {
            RunResult::Ok(array) => array.into_array().map(Some),
            RunResult::Err => Ok(None),
        }
    }
}

/// An asynchronous function.
#[derive(Clone, Copy)]
pub(crate) struct AsyncLibrary {
    start: Start,
    send: Send,
    drain: Drain,
    stop: Stop,
    is_running: IsRunning,
}

impl std::fmt::Debug for AsyncLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AsyncLibrary")
    }
}

impl AsyncLibrary {
    /// Loads it.
    ///
    /// # Errors
    /// If it is no library, or another one.
    pub fn load(path: &Path) -> Result<AsyncLibrary, UdfError> {
        let library = open(path)?;
        // SAFETY: `#[udf]` of the plugin over an async function makes these, and the frame the last.
        unsafe {
            Ok(AsyncLibrary {
                start: symbol(library, path, "__start")?,
                send: symbol(library, path, "__send")?,
                drain: symbol(library, path, "__drain_results")?,
                stop: symbol(library, path, "__stop_runtime")?,
                is_running: symbol(library, path, "__orderflow_is_running")?,
            })
        }
    }

    /// Starts the thread on which the function's calls wait.
    pub fn start(&self, name: &str, options: AsyncOptions) -> AsyncRuntime {
        let timeout_micros = u64::try_from(options.timeout.as_micros()).unwrap_or(u64::MAX);
        // Answers are told apart by their ids, so that none has to wait for those of earlier calls.
        // SAFETY: the symbol is of this type.
        let handle = unsafe { (self.start)(false, timeout_micros, options.in_flight_max) };
        AsyncRuntime { library: *self, handle, next_id: 0, name: name.to_owned(), timeout: options.timeout }
    }
}

/// A thread of an asynchronous function's library, with its calls in flight.
pub(crate) struct AsyncRuntime {
    library: AsyncLibrary,
    handle: Handle,
    next_id: u64,
    name: String,
    timeout: Duration,
}

// SAFETY: the handle is to a queue and a lock, which any thread may use.
unsafe impl std::marker::Send for AsyncRuntime {}

impl Drop for AsyncRuntime {
    fn drop(&mut self) {
        // SAFETY: the handle is not used again.
        unsafe { (self.library.stop)(self.handle) };
    }
}

/// Wakes the thread that waits for a send.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// How long to wait at first for answers, and at most. Nothing tells of an answer; one has to look.
const WAIT: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];

impl AsyncRuntime {
    /// The function's values for `rows` rows of arguments, in their order, once all are there. The plugin keeps so many calls in flight as it was started with.
    ///
    /// # Errors
    /// If a call took too long, or panicked.
    pub fn call(&mut self, rows: usize, arguments: &[ArrayRef]) -> Result<Answers, UdfError> {
        let mut answers = Answers { arrays: Vec::new(), of_row: HashMap::new() };
        let first = self.next_id;
        self.next_id += rows as u64;
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        for row in 0..rows {
            let arguments: Vec<ArrayRef> = arguments.iter().map(|array| array.slice(row, 1)).collect();
            let arguments = FfiArrays::new(&arguments).map_err(|e| self.failed(&e.to_string()))?;
            // SAFETY: the handle is of this library, and the arguments are one value each, of the types of the signature.
            let mut sent = pin!(unsafe { (self.library.send)(self.handle, first + row as u64, arguments) });
            let mut wait = WAIT[0];
            loop {
                match sent.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(true) => break,
                    Poll::Ready(false) => return Err(self.ended()),
                    Poll::Pending => self.take(first, &mut answers, &mut wait)?,
                }
            }
        }
        let mut wait = WAIT[0];
        while answers.of_row.len() < rows {
            // Whether it runs is asked before the last look, so that what it gave before it ended is not missed.
            // SAFETY: the handle is of this library.
            let is_running = unsafe { (self.library.is_running)(self.handle) };
            self.take(first, &mut answers, &mut wait)?;
            if !is_running && answers.of_row.len() < rows {
                return Err(self.ended());
            }
        }
        Ok(answers)
    }

    /// Takes the answers that are there; waits a little if there is none.
    fn take(&self, first: u64, answers: &mut Answers, wait: &mut Duration) -> Result<(), UdfError> {
        // SAFETY: the handle is of this library.
        match unsafe { (self.library.drain)(self.handle) } {
            Drained::Data(arrays) => {
                // SAFETY: the plugin made it of a `Vec`.
                let arrays = unsafe { arrays.into_arrays() }.map_err(|e| self.failed(&e.to_string()))?;
                let [ids, values] = arrays.as_slice() else { return Err(self.failed("its library gives no ids with its values")) };
                for (place, id) in ids.as_primitive::<UInt64Type>().values().iter().enumerate() {
                    answers.of_row.insert((id - first) as usize, (answers.arrays.len(), place));
                }
                answers.arrays.push(values.clone());
                *wait = WAIT[0];
                Ok(())
            }
            Drained::None => {
                std::thread::park_timeout(*wait);
                *wait = (*wait * 2).min(WAIT[1]);
                Ok(())
            }
            Drained::Error => Err(self.ended()),
        }
    }

    fn failed(&self, what: &str) -> UdfError {
        UdfError::new(format!("function {}(): {what}", self.name))
    }

    /// Why the thread has ended.
    fn ended(&self) -> UdfError {
        // The thread that panics lets go of its queue a moment after it has poisoned its results.
        // SAFETY: the handle is of this library.
        if matches!(unsafe { (self.library.drain)(self.handle) }, Drained::Error) {
            return self
                .failed(&format!("a call took longer than {:?}; raise #[udf(timeout = \"…\")], or see what it waits for", self.timeout));
        }
        self.failed("it panicked; its message is above, on standard error")
    }
}

/// Values that came out of order.
pub(crate) struct Answers {
    arrays: Vec<ArrayRef>,
    /// Where a row's value is: the array, and the place in it.
    of_row: HashMap<usize, (usize, usize)>,
}

impl Answers {
    /// The values of rows; NULL for `None`.
    ///
    /// # Errors
    /// If the library's arrays are not of one type.
    pub fn gather(
        &self,
        rows: impl Iterator<Item = Option<usize>>,
        data_type: &arrow::datatypes::DataType,
    ) -> Result<ArrayRef, ArrowError> {
        let nulls = arrow::array::new_null_array(data_type, 1);
        let arrays: Vec<&dyn Array> = std::iter::once(nulls.as_ref()).chain(self.arrays.iter().map(AsRef::as_ref)).collect();
        let places = rows.map(|row| row.and_then(|row| self.of_row.get(&row)).map_or((0, 0), |(array, place)| (array + 1, *place)));
        arrow::compute::interleave(&arrays, &places.collect::<Vec<_>>())
    }
}
