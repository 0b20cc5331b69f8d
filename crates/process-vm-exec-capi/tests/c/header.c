/* Nothing but the headers: they are complete, and C and C++ compilers have nothing to say about it. */
#include <process_vm_exec.h>
#include <pvx.h>

int main(void)
{
	struct process_vm_exec_context context;

	return sizeof(context) == 272 && sizeof(struct pvx_exit) == 216 ? 0 : 1;
}
