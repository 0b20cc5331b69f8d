/* Call sites that a supervisor rewrites itself: text and stubs are files that it writes to, mapped shared. */
#include "spaces.h"
#include <linux/membarrier.h>

#define SITE 256
/* mov $39, %eax; syscall; cmp $-4095, %rax; jmp back */
static const char code[] = "\xb8\x27\0\0\0\x0f\x05\x48\x3d\x01\xf0\xff\xff\xeb\xf1";
#define BEHIND (CODE + SITE + 7)

struct guest {
	struct pvx_space *space;
	struct pvx_context *context;
	struct pvx_planner *planner;
	int text;
	int stubs;
	uint64_t place;
};

static int file_of(size_t length)
{
	int file = memfd_create("text", MFD_CLOEXEC);

	CHECK(file >= 0 && ftruncate(file, (off_t)length) == 0);
	return file;
}

static struct guest new_guest(void)
{
	struct pvx_options options = options_with(PVX_ENGINE_REWRITE);
	struct guest guest;
	char page[PAGE];
	uint64_t start, length;

	options.flags = PVX_PLANNED_REWRITING;
	guest.space = new_space(&options);
	guest.context = new_context(CODE + SITE, 0);
	guest.text = file_of(PAGE);
	guest.stubs = -1;
	/* push %rax, again and again */
	memset(page, 0x50, sizeof(page));
	memcpy(page + SITE, code, sizeof(code) - 1);
	CHECK(pwrite(guest.text, page, sizeof(page), 0) == sizeof(page));
	CHECK(pvx_map_fd(guest.space, CODE, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, guest.text, 0) ==
	      (int64_t)CODE);
	CHECK(pvx_space_region(guest.space, &start, &length) == 0);
	CHECK(pvx_planner_create(start, &guest.planner) == 0);
	return guest;
}

static void free_guest(struct guest *guest)
{
	pvx_planner_free(guest->planner);
	pvx_context_free(guest->context);
	pvx_space_free(guest->space);
	close(guest->text);
	close(guest->stubs);
}

/* Runs to the call, which comes this way, and leaves the guest's own registers. */
static void expect_call(struct guest *guest, int rewritten)
{
	struct pvx_registers registers;
	struct pvx_exit why;

	CHECK(pvx_get_registers(guest->context, &registers) == 0);
	registers.rip = pvx_planner_present(guest->planner, registers.rip);
	CHECK(pvx_set_registers(guest->context, &registers) == 0);
	CHECK(pvx_run(guest->space, guest->context, NULL, 0, &why) == 0);
	CHECK(why.kind == PVX_SYSCALL && why.number == 39 && why.rewritten == rewritten);
	CHECK(pvx_get_registers(guest->context, &registers) == 0);
	CHECK(pvx_planner_original(guest->planner, &registers) == 0);
	CHECK(registers.rip == BEHIND && registers.rcx == BEHIND);
	CHECK(pvx_set_registers(guest->context, &registers) == 0);
}

static void change(struct guest *guest, const struct pvx_plan *plan, uint8_t (*steps)[8])
{
	const uint64_t sync_core[6] = { MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE };
	int step;

	for (step = 0; step < 3; step++) {
		CHECK(pwrite(guest->text, steps[step], plan->length, (off_t)(plan->address - CODE)) == plan->length);
		CHECK(pvx_syscall(guest->space, SYS_membarrier, sync_core) == 0);
	}
}

static int plan(struct guest *guest, uint32_t forms, struct pvx_plan *plan)
{
	struct pvx_registers registers;
	char text[PAGE];

	CHECK(pvx_get_registers(guest->context, &registers) == 0);
	CHECK(pread(guest->text, text, sizeof(text), 0) == sizeof(text));
	return pvx_plan(guest->planner, &registers, CODE, text, sizeof(text), forms, plan);
}

static void apply(struct guest *guest, struct pvx_plan *plan)
{
	CHECK(pwrite(guest->stubs, plan->stub_bytes, plan->stub_length, (off_t)(plan->stub - guest->place)) ==
	      plan->stub_length);
	change(guest, plan, plan->apply);
	CHECK(pvx_planner_commit(guest->planner) == 0);
}

static void add_stubs(struct guest *guest)
{
	uint64_t places[4], first_word;

	CHECK(pvx_planner_places(guest->planner, CODE, places, 4) > 0);
	guest->place = places[0];
	guest->stubs = file_of(PVX_STUBS_LENGTH);
	CHECK(pvx_planner_add_stubs(guest->planner, guest->place, &first_word) == 0);
	CHECK(pwrite(guest->stubs, &first_word, sizeof(first_word), 0) == sizeof(first_word));
	CHECK(pvx_map_fd(guest->space, guest->place, PVX_STUBS_LENGTH, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED,
			 guest->stubs, 0) == (int64_t)guest->place);
	CHECK(pvx_planner_places(guest->planner, CODE, NULL, 0) == 0);
}

static void a_site_is_rewritten_in_text_that_is_shared(void)
{
	struct guest guest = new_guest();
	struct pvx_plan before, behind, taken;
	char text[PAGE], words[256];
	int round;

	expect_call(&guest, 0);
	CHECK(plan(&guest, PVX_FORMS_ALL, &before) == -EAGAIN);
	CHECK(pvx_error(words, sizeof(words)) && strstr(words, "pvx_planner_places"));
	CHECK(pvx_planner_commit(guest.planner) == -ENOENT);
	add_stubs(&guest);
	CHECK(plan(&guest, PVX_FORMS_ALL, &before) == 0);
	CHECK(before.site == BEHIND && before.address == CODE + SITE && before.length == 5);
	apply(&guest, &before);
	CHECK(pvx_planner_commit(guest.planner) == -ENOENT);
	CHECK(plan(&guest, PVX_FORMS_BEHIND, &behind) == -EEXIST);
	CHECK(pvx_error(words, sizeof(words)) && strstr(words, "pvx_planner_take_back"));
	for (round = 0; round < 100; round++)
		expect_call(&guest, 1);

	/* Taken back, the site traps. */
	CHECK(pvx_planner_take_back(guest.planner, CODE, SITE, &taken) == 0);
	CHECK(pvx_planner_take_back(guest.planner, CODE, PAGE, &taken) == 1);
	CHECK(memcmp(&taken, &before, sizeof(taken)) == 0);
	CHECK(pvx_planner_take_back(guest.planner, CODE, PAGE, &taken) == 0);
	change(&guest, &before, before.undo);
	expect_call(&guest, 0);

	/* The other form, whose stub goes on behind the call. */
	CHECK(plan(&guest, PVX_FORMS_BEHIND, &behind) == 0);
	CHECK(behind.address == BEHIND - 2);
	apply(&guest, &behind);
	for (round = 0; round < 100; round++)
		expect_call(&guest, 1);
	CHECK(pvx_planner_present(guest.planner, BEHIND) != BEHIND);
	CHECK(pvx_planner_original_address(guest.planner, pvx_planner_present(guest.planner, BEHIND)) == BEHIND);
	CHECK(pvx_planner_breakpoint(guest.planner, BEHIND + 1) == PVX_BREAKPOINT_PLANNED);
	CHECK(pvx_planner_breakpoint(guest.planner, CODE) == PVX_BREAKPOINT_UNKNOWN);
	CHECK(pread(guest.text, text, sizeof(text), 0) == sizeof(text));
	CHECK(memcmp(text + SITE, code, sizeof(code) - 1) != 0);
	CHECK(pvx_planner_undo_in(guest.planner, CODE, text, sizeof(text)) == 0);
	CHECK(memcmp(text + SITE, code, sizeof(code) - 1) == 0);
	free_guest(&guest);
}

static void a_clone_knows_what_the_planner_knew(void)
{
	struct guest guest = new_guest();
	struct pvx_planner *clone;
	struct pvx_plan made, taken;

	expect_call(&guest, 0);
	CHECK(plan(&guest, PVX_FORMS_ALL, &made) == -EAGAIN);
	add_stubs(&guest);
	CHECK(plan(&guest, PVX_FORMS_ALL, &made) == 0);
	apply(&guest, &made);
	CHECK(pvx_planner_clone(guest.planner, &clone) == 0);
	CHECK(pvx_planner_take_back(guest.planner, CODE, PAGE, &taken) == 1);
	CHECK(pvx_planner_take_back(clone, CODE, PAGE, &taken) == 1);
	pvx_planner_free(clone);
	change(&guest, &made, made.undo);
	CHECK(pvx_space_stop_plans(guest.space) == 0);
	expect_call(&guest, 0);
	free_guest(&guest);
}

static void planners_say_what_is_wrong(void)
{
	struct guest guest = new_guest();
	struct pvx_options options = options_with(PVX_ENGINE_REWRITE);
	struct pvx_planner *planner = NULL;
	struct pvx_registers registers;
	struct pvx_space *space = NULL;
	struct pvx_plan made;
	char text[PAGE], words[256];
	uint64_t word;

	options.flags = PVX_PLANNED_REWRITING | PVX_NO_REWRITING;
	CHECK(pvx_space_create(&options, &space) == -EINVAL && space == NULL);
	CHECK(pvx_error(words, sizeof(words)) && strstr(words, "exclude"));
	/* They are for one engine, whatever is chosen for others. */
	options.flags = PVX_PLANNED_REWRITING;
	options.engine = PVX_ENGINE_TRAP;
	CHECK(pvx_space_create(&options, &space) == -ENOSYS && space == NULL);
	options.engine = PVX_ENGINE_BEST;
	CHECK(setenv("PROCESS_VM_EXEC_ENGINE", "trap", 1) == 0);
	CHECK(pvx_space_create(&options, &space) == 0);
	CHECK(unsetenv("PROCESS_VM_EXEC_ENGINE") == 0);
	pvx_space_free(space);
	CHECK(pvx_planner_create(1, &planner) == -EINVAL && planner == NULL);
	CHECK(pvx_planner_create(1ULL << 32, NULL) == -EFAULT && pvx_planner_clone(NULL, &planner) == -EFAULT);
	CHECK(pread(guest.text, text, sizeof(text), 0) == sizeof(text));
	CHECK(pvx_get_registers(guest.context, &registers) == 0);
	/* No syscall ends there. */
	CHECK(pvx_plan(guest.planner, &registers, CODE, text, PAGE, PVX_FORMS_ALL, &made) == -ENOENT);
	CHECK(pvx_plan(guest.planner, &registers, CODE, NULL, 0, PVX_FORMS_ALL, &made) == -ENOENT);
	CHECK(pvx_plan(guest.planner, &registers, CODE, text, PAGE, 2, &made) == -EINVAL);
	CHECK(pvx_plan(NULL, &registers, CODE, text, PAGE, 0, &made) == -EFAULT);
	CHECK(pvx_plan(guest.planner, NULL, CODE, text, PAGE, 0, &made) == -EFAULT);
	CHECK(pvx_plan(guest.planner, &registers, CODE, NULL, PAGE, 0, &made) == -EFAULT);
	CHECK(pvx_plan(guest.planner, &registers, CODE, text, PAGE, 0, NULL) == -EFAULT);
	CHECK(pvx_planner_places(NULL, CODE, &word, 1) == -EFAULT);
	CHECK(pvx_planner_places(guest.planner, CODE, NULL, 1) == -EFAULT);
	CHECK(pvx_planner_places(guest.planner, CODE, &word, 1) == 0);
	CHECK(pvx_planner_add_stubs(NULL, CODE, &word) == -EFAULT);
	CHECK(pvx_planner_add_stubs(guest.planner, CODE, NULL) == -EFAULT);
	CHECK(pvx_planner_add_stubs(guest.planner, UINT64_MAX - PAGE + 1, &word) == -EINVAL);
	CHECK(pvx_planner_add_stubs(guest.planner, CODE + 1, &word) == -EINVAL);
	CHECK(pvx_planner_commit(NULL) == -EFAULT && pvx_planner_commit(guest.planner) == -ENOENT);
	CHECK(pvx_planner_take_back(NULL, 0, 1, &made) == -EFAULT);
	CHECK(pvx_planner_take_back(guest.planner, 0, UINT64_MAX, NULL) == -EFAULT);
	CHECK(pvx_planner_original(NULL, &registers) == -EFAULT);
	CHECK(pvx_planner_original(guest.planner, NULL) == -EFAULT);
	CHECK(pvx_planner_present(NULL, 5) == 5 && pvx_planner_original_address(NULL, 5) == 5);
	CHECK(pvx_planner_breakpoint(NULL, 5) == -EFAULT);
	CHECK(pvx_planner_undo_in(NULL, CODE, text, PAGE) == -EFAULT);
	CHECK(pvx_planner_undo_in(guest.planner, CODE, NULL, PAGE) == -EFAULT);
	CHECK(pvx_planner_undo_in(guest.planner, CODE, NULL, 0) == 0);
	CHECK(pvx_space_stop_plans(NULL) == -EFAULT);
	pvx_planner_free(NULL);
	free_guest(&guest);
}

int main(void)
{
	planners_say_what_is_wrong();
	a_site_is_rewritten_in_text_that_is_shared();
	a_clone_knows_what_the_planner_knew();
	return 0;
}
