use process_vm_exec::{AddressSpace, Context, SignalSet};

fn main() {
    let space = AddressSpace::create().unwrap();
    let mut context = Context::new(0x1000, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| space.run(&mut context, &SignalSet::all()));
        scope.spawn(|| space.run(&mut context, &SignalSet::all()));
    });
}
