//! Kept instances: built, called, and put back to the first state of their module.

use std::{
    ops::Range,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use wasmtime::{
    ExternType, Global, Instance, InstancePre, Linker, Memory, Module, Result, Store, TypedFunc,
    UpdateDeadline, Val, bail,
};

use super::{
    abi,
    guest::{Guest, HANDLE},
    image::{Budget, Image, MAX_IMAGES, ranges},
    qualify::Unqualified,
    rewrite::{CARD, CARD_SHIFT, STRADDLE, names},
    shelf::{self, Item, MAX_NODE_BYTES, MAX_NODE_INSTANCES, Node, Place},
};
use crate::{
    bindings::beamline::edge::verdicts::Verdict,
    call::{at_tick, thread_cpu},
    engine::MAX_STACK,
    host::CallState,
    ticker::Ticker,
};

/// CPU time that a module's start may take, each time that it is loaded.
const MAX_START: Duration = Duration::from_millis(10);
/// More ticks than a node lives.
const UNLIMITED_TICKS: u64 = 1 << 40;
/// What an instance takes beside its memories, tables, functions and stack: the host's buffers, most of all.
const OVERHEAD: usize = 128 << 10;
/// Bytes of an element of a table.
const TABLE_ELEMENT: u64 = 8;
/// Bytes of wasmtime's record of a function, in each instance.
const FUNCTION: usize = 32;

/// wasmtime for core modules, what they can import, and what the node keeps of them.
pub(crate) struct CoreEngine {
    engine: wasmtime::Engine,
    linker: Linker<Guest>,
    node: Arc<Node>,
    images: Arc<Budget>,
}

impl CoreEngine {
    pub(crate) fn new(engine: wasmtime::Engine) -> Result<Self> {
        Self::with_images(engine, Budget::of(MAX_IMAGES))
    }

    pub(super) fn with_images(engine: wasmtime::Engine, images: Arc<Budget>) -> Result<Self> {
        let linker = abi::linker(&engine)?;
        let node = Node::with_bounds(MAX_NODE_INSTANCES, MAX_NODE_BYTES);
        Ok(Self { engine, linker, node, images })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// Starts a compiled module once, with every import trapping, to see what its first state is.
    ///
    /// # Errors
    /// Where its start traps, calls an import, grows the memory or does not end, and where its first state is too large for itself or
    /// beside those of the modules that are loaded already.
    pub(crate) fn prepare(&self, module: &Module, ticker: &Ticker) -> Result<Hold, Unqualified> {
        self.started(module, ticker).map(|core| Hold { core: Arc::new(core) })
    }

    fn started(&self, module: &Module, ticker: &Ticker) -> Result<Core, Unqualified> {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        let Some(ExternType::Memory(memory)) = module.get_export(names::MEMORY) else {
            return Err(Unqualified::Start("the rewritten module exports no memory".into()));
        };
        let pre = self.linker.instantiate_pre(module)?;
        let max_pages = memory.maximum().unwrap_or(memory.minimum());
        let mut store = Store::new(&self.engine, Guest::new(max_pages));
        let (began, ticks) = (thread_cpu(), ticker.clone());
        store.epoch_deadline_callback(move |_| {
            ticks.keep();
            if thread_cpu().saturating_sub(began) > MAX_START {
                bail!("it had not ended after {MAX_START:?} of CPU time")
            }
            Ok(UpdateDeadline::Continue(1))
        });
        ticker.keep();
        store.set_epoch_deadline(1);
        let instance = at_once(pre.instantiate_async(&mut store))?;
        let parts = Parts::of(&mut store, &instance)?;
        let before = parts.memory.data(&store).to_vec();
        store.data_mut().set_memory(parts.memory, before.len());
        let init = instance.get_typed_func::<(), ()>(&mut store, names::INIT)?;
        at_once(init.call_async(&mut store, ()))?;
        let globals = parts.globals.iter().map(|global| global.get(&mut store)).collect();
        let cards = parts.cards.data_size(&store);
        let memory = parts.memory.data(&store);
        let needs = module.resources_required();
        let elements = u64::from(needs.num_tables) * needs.max_initial_table_size.unwrap_or(0);
        let functions = module.functions().len() * FUNCTION;
        let tables = usize::try_from(elements.saturating_mul(TABLE_ELEMENT)).unwrap_or(usize::MAX);
        Ok(Core {
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            wanted: AtomicBool::new(true),
            node: Arc::clone(&self.node),
            pre,
            max_pages,
            size: memory.len(),
            beside: tables.saturating_add(functions + cards + MAX_STACK + OVERHEAD),
            start_wrote: ranges(memory.len(), CARD, |card| before[card.clone()] != memory[card]).into(),
            first: Image::of(memory, &self.images)?,
            globals,
        })
    }
}

/// The outcome of a future that has nothing to wait for: while a module starts, no import can be called.
fn at_once<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => bail!("it waits for something"),
    }
}

/// A loaded module's hold on its core: instances are kept for as long as there is one. Who drops it frees those that
/// threads keep, and then the machine code: no thread that serves requests has to.
pub(crate) struct Hold {
    core: Arc<Core>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // In this order: what is put on a shelf that was looked at already is not wanted any more.
        self.core.wanted.store(false, Ordering::Relaxed);
        shelf::let_go(self.core.key);
    }
}

impl Hold {
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

/// A core module that is ready to run, and its first state.
pub(crate) struct Core {
    /// Tells this module from every other one that was ever loaded.
    key: u64,
    /// Whether there still is the module's [`Hold`].
    wanted: AtomicBool,
    node: Arc<Node>,
    pre: InstancePre<Guest>,
    max_pages: u64,
    /// Bytes of memory that it begins with.
    size: usize,
    /// Bytes that an instance may take beside its memory.
    beside: usize,
    first: Image,
    /// Where the module's start changed memory: a new instance's is not the first state yet.
    start_wrote: Box<[Range<usize>]>,
    /// Values of [`Parts::globals`].
    globals: Box<[Val]>,
}

impl Core {
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// Bytes of memory that the module begins with.
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// What the host holds of a rewritten module's instance.
struct Parts {
    memory: Memory,
    cards: Memory,
    /// All that are mutable, the size among them, in the order of their names.
    globals: Vec<Global>,
}

impl Parts {
    fn of(store: &mut Store<Guest>, instance: &Instance) -> Result<Self> {
        let (Some(memory), Some(cards)) =
            (instance.get_memory(&mut *store, names::MEMORY), instance.get_memory(&mut *store, names::CARDS))
        else {
            bail!("the rewritten module exports no memory")
        };
        let mut globals: Vec<_> = instance
            .exports(&mut *store)
            .filter_map(|export| Some((export.name().to_owned(), export.into_global()?)))
            .collect();
        globals.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Self { memory, cards, globals: globals.into_iter().map(|(_, global)| global).collect() })
    }
}

/// An instance of a core module in its first state.
pub(super) struct Kept {
    core: Arc<Core>,
    store: Store<Guest>,
    parts: Parts,
    run: TypedFunc<u32, ()>,
    touched: Vec<usize>,
    place: Place,
}

impl Item for Box<Kept> {
    fn key(&self) -> u64 {
        self.core.key
    }

    fn cost(&self) -> usize {
        self.core.beside.saturating_add(self.bytes())
    }

    fn is_wanted(&self) -> bool {
        self.core.wanted.load(Ordering::Relaxed)
    }

    fn place(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl Kept {
    /// A new instance.
    pub(super) async fn new(core: &Arc<Core>) -> Result<Box<Self>> {
        #[cfg(test)]
        MADE.set(MADE.get() + 1);
        let mut store = Store::new(core.pre.module().engine(), Guest::new(core.max_pages));
        store.epoch_deadline_callback(|mut cx| match cx.data_mut().running() {
            Some(call) => at_tick(call),
            None => bail!("no call is under way"),
        });
        // Runs nothing of the guest, whose start is a function of its own, but may meet a tick.
        store.set_epoch_deadline(UNLIMITED_TICKS);
        let instance = core.pre.instantiate_async(&mut store).await?;
        let parts = Parts::of(&mut store, &instance)?;
        let run = instance.get_typed_func(&mut store, names::RUN)?;
        store.data_mut().set_memory(parts.memory, core.size);
        let place = Place::none(&core.node);
        let kept = Self { core: Arc::clone(core), store, parts, run, touched: Vec::new(), place };
        let mut kept = Box::new(kept);
        let memory = kept.parts.memory.data_mut(&mut kept.store);
        for range in &core.start_wrote {
            core.first.restore(memory, range.start, range.end);
        }
        kept.restore_globals()?;
        Ok(kept)
    }

    /// Bytes of linear memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.parts.memory.data_size(&self.store)
    }

    /// Runs the request phase: the call's state, and the verdict or what went wrong.
    pub(super) async fn call(&mut self, state: Box<CallState>) -> (Box<CallState>, Result<Verdict>) {
        let outcome = self.run(state).await;
        let (state, verdict) = self.store.data_mut().end();
        let state = state.expect("a call that began has its state until it ends");
        let verdict = outcome.and_then(|()| match verdict {
            Some(verdict) => Ok(verdict),
            None => bail!("the phase ended without a verdict"),
        });
        (state, verdict)
    }

    async fn run(&mut self, state: Box<CallState>) -> Result<()> {
        if !self.store.data_mut().begin(state) {
            bail!("the memory that the module begins with is more than its limit")
        }
        self.store.set_epoch_deadline(1);
        self.run.call_async(&mut self.store, HANDLE).await
    }

    /// Puts the instance back to its module's first state, after a call that ended well. `false`: it is not worth
    /// keeping.
    pub(super) fn reset(&mut self) -> Result<bool> {
        if !self.store.data().may_keep(self.bytes()) {
            return Ok(false);
        }
        let (cards, guest) = self.parts.cards.data_and_store_mut(&mut self.store);
        let cards = &mut cards[..guest.size() >> CARD_SHIFT];
        // What the host wrote, most of it beside what the guest did: each card is restored once.
        for (first, last) in guest.marks.drain(cards.len()) {
            cards[first..=last].fill(1);
        }
        collect(cards, &mut self.touched);
        let (memory, guest) = self.parts.memory.data_and_store_mut(&mut self.store);
        for card in self.touched.drain(..) {
            self.core.first.restore(memory, card * CARD, (card + 1) * CARD + STRADDLE);
        }
        guest.set_size(self.core.size);
        self.restore_globals()?;
        Ok(true)
    }

    fn restore_globals(&mut self) -> Result<()> {
        for (global, value) in self.parts.globals.iter().zip(&self.core.globals) {
            global.set(&mut self.store, *value)?;
        }
        Ok(())
    }
}

/// Notes which cards are set, and clears them. Their number is a multiple of 64: a page has as many.
fn collect(cards: &mut [u8], touched: &mut Vec<usize>) {
    let (words, _) = cards.as_chunks_mut::<8>();
    for (index, word) in words.iter_mut().enumerate() {
        if *word == [0; 8] {
            continue;
        }
        touched.extend((0..8).filter(|i| word[*i] != 0).map(|i| index * 8 + i));
        *word = [0; 8];
    }
}

#[cfg(test)]
thread_local! {
    /// Instances that this thread has made.
    pub(super) static MADE: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
impl Kept {
    /// Panics where this instance's state differs from that of `new`, by a byte of memory, a card or a global.
    pub(super) fn assert_is(&mut self, new: &mut Self) {
        assert_eq!(self.store.data().size(), new.store.data().size());
        let (ours, fresh) = (self.parts.memory.data(&self.store), new.parts.memory.data(&new.store));
        let differs = |(a, b): (&u8, &u8)| a != b;
        assert_eq!(ours.iter().zip(fresh).position(differs), None, "the first byte that is not as it was");
        let grown = &ours[fresh.len()..];
        assert_eq!(grown.iter().position(|byte| *byte != 0), None, "in what it once had more");
        assert!(self.parts.cards.data(&self.store).iter().all(|card| *card == 0), "a card");
        let guest = self.store.data();
        assert!(guest.is_at_rest(), "what the host keeps of a call");
        assert_eq!(self.parts.globals.len(), new.parts.globals.len());
        for (index, (ours, fresh)) in self.parts.globals.iter().zip(&new.parts.globals).enumerate() {
            let (ours, fresh) = (ours.get(&mut self.store), fresh.get(&mut new.store));
            assert_eq!(format!("{ours:?}"), format!("{fresh:?}"), "global {index}");
        }
    }
}

#[cfg(test)]
impl Kept {
    /// Changes one thing that [`Self::assert_is`] must see.
    pub(super) fn spoil(&mut self, what: usize) {
        match what {
            0 => self.parts.memory.data_mut(&mut self.store)[5_000] ^= 1,
            1 => self.parts.cards.data_mut(&mut self.store)[3] = 1,
            2 => {
                let global = self.parts.globals[0];
                let other = match global.get(&mut self.store) {
                    Val::I32(value) => Val::I32(!value),
                    Val::I64(value) => Val::I64(!value),
                    value => panic!("an integer, found {value:?}"),
                };
                global.set(&mut self.store, other).expect("it is mutable");
            }
            3 => {
                let size = self.store.data().size();
                self.store.data_mut().set_size(size - 1);
            }
            _ => self.store.data_mut().marks.add(0, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_collected_and_cleared() {
        let mut cards = vec![0; 128];
        (cards[0], cards[63], cards[64], cards[127]) = (1, 1, 1, 1);
        let mut touched = Vec::new();
        collect(&mut cards, &mut touched);
        assert_eq!(touched, [0, 63, 64, 127]);
        assert!(cards.iter().all(|c| *c == 0));
    }
}
