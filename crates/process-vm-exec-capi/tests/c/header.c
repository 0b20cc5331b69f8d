/* Nothing but the header: it is complete, and C and C++ compilers have nothing to say about it. */
#include <process_vm_exec.h>

int main(void)
{
	struct process_vm_exec_context context;

	return sizeof(context) == 272 ? 0 : 1;
}
