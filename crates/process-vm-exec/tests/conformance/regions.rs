//! Where the executor's pages are, and for how many contexts there is room.

use process_vm_exec::{AddressSpace, Context, DEFAULT_REGION, Engine, Error, Exit, Mapping, SignalSet};

use crate::common::{CODE, NR, PAGE, READ_EXEC, READ_WRITE, asm, call_loop, claims};

/// A space with a loop of calls at [`CODE`].
fn space_at(engine: Engine, region: u64) -> AddressSpace {
    let space = AddressSpace::builder().engine(engine).region(region).create().expect("a space");
    space.map(Mapping::anonymous(PAGE, READ_WRITE).at(CODE)).expect("room for code");
    space.write(CODE, &asm(call_loop)).expect("code is written");
    space.protect(CODE, PAGE, READ_EXEC).expect("code is protected");
    space
}

#[track_caller]
fn assert_calls(space: &AddressSpace, ctx: &mut Context) {
    let exit = space.run(ctx, &SignalSet::all()).expect("the guest runs");
    assert!(matches!(exit, Exit::Syscall) && ctx.syscall().nr == u64::from(NR), "{exit:?}");
    ctx.set_return(Ok(0));
}

claims! {
    fn spaces_with_different_regions_run_beside_each_other(engine) {
        let starts = [DEFAULT_REGION.start, 1 << 32, 0x6fff_0000_0000, 0x7f80_0000_0000];
        let spaces = starts.map(|start| space_at(engine, start));
        let mut contexts = starts.map(|_| Context::new(CODE, 0));
        for _ in 0..3 {
            for (space, ctx) in spaces.iter().zip(&mut contexts) {
                assert_calls(space, ctx);
            }
        }
        for (space, start) in spaces.iter().zip(starts) {
            assert_eq!(space.region(), start..start + (DEFAULT_REGION.end - DEFAULT_REGION.start));
            assert_eq!(space.rewritten_sites(), usize::from(engine == Engine::Rewrite));
            for other in starts {
                let there = space.map(Mapping::anonymous(PAGE, READ_WRITE).at(other));
                match there {
                    Ok(addr) => assert!(other != start && addr == other, "{other:#x} in {start:#x}"),
                    Err(error) => {
                        assert!(other == start && matches!(error, Error::Reserved { .. }), "{error}");
                    }
                }
            }
            // What a forked space has is where it was.
            let fork = space.fork().expect("a fork");
            assert_eq!(fork.region(), space.region());
            assert_calls(&fork, &mut Context::new(CODE, 0));
        }
    }

    fn no_space_has_its_region_where_code_and_filters_would_not_know_it(engine) {
        for start in [0, PAGE, (1 << 32) + PAGE, 0x7fe0_0000_0000, 1 << 47, !0 << 32] {
            let refused = AddressSpace::builder().engine(engine).region(start).create();
            assert!(matches!(refused, Err(Error::Region { start: at }) if at == start), "{refused:?}");
        }
    }

    fn four_thousand_and_more_contexts_run_in_one_space(engine) {
        const COUNT: usize = 4_200;
        let space = space_at(engine, DEFAULT_REGION.start);
        let mut contexts: Vec<_> = (0..COUNT).map(|_| Context::new(CODE, 0)).collect();
        for round in 0..2 {
            for (number, ctx) in contexts.iter_mut().enumerate() {
                match space.run(ctx, &SignalSet::all()) {
                    Ok(Exit::Syscall) => ctx.set_return(Ok(0)),
                    other => panic!("number {number} in round {round}: {other:?}"),
                }
            }
        }
        // Whoever is last in memory is one like the others.
        let last = contexts.last_mut().expect("contexts");
        last.registers_mut().rbx = 0x1234;
        assert_calls(&space, last);
        assert_eq!(last.registers().rbx, 0x1234);
    }
}
