// Goroutines that run guests by cgo: contexts go from thread to thread as Go likes.
package main

/*
#include <pvx.h>
#include <string.h>
#include <sys/mman.h>

// A loop of calls of getpid.
static const char code[] = "\xb8\x27\0\0\0\x0f\x05\xeb\xf7";

enum { CODE = 0x400000 };

static int load(struct pvx_space *space, struct pvx_context *context)
{
	struct pvx_registers registers;

	memset(&registers, 0, sizeof(registers));
	registers.rip = CODE;
	if (pvx_map(space, CODE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, PVX_ANONYMOUS, 0) != CODE ||
	    pvx_write(space, CODE, code, sizeof(code) - 1) != 0 ||
	    pvx_protect(space, CODE, 4096, PROT_READ | PROT_EXEC) != 0)
		return -1;
	return pvx_set_registers(context, &registers);
}
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

const (
	guests = 8
	calls  = 300
)

func check(what string, result C.int) {
	if result == 0 {
		return
	}
	// The words are the thread's, which may have been another.
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, syscall.Errno(-result))
	os.Exit(1)
}

func run(number int, region uint64) {
	options := C.struct_pvx_options{region: C.uint64_t(region)}
	options.size = C.size_t(unsafe.Sizeof(options))
	var space *C.struct_pvx_space
	var context *C.struct_pvx_context
	check("pvx_space_create", C.pvx_space_create(&options, &space))
	check("pvx_context_create", C.pvx_context_create(&context))
	check("load", C.load(space, context))
	for call := 0; call < calls; call++ {
		var exit C.struct_pvx_exit
		check("pvx_run", C.pvx_run(space, context, nil, 0, &exit))
		if exit.kind != C.PVX_SYSCALL || exit.number != syscall.SYS_GETPID {
			fmt.Fprintf(os.Stderr, "guest %d: exit of kind %d\n", number, exit.kind)
			os.Exit(1)
		}
		check("pvx_set_return", C.pvx_set_return(context, C.int64_t(call)))
		// Another thread may go on here.
		runtime.Gosched()
	}
	C.pvx_context_free(context)
	C.pvx_space_free(space)
}

func main() {
	var all sync.WaitGroup
	for number := 0; number < guests; number++ {
		all.Add(1)
		go func(number int) {
			defer all.Done()
			run(number, []uint64{0, 0x7f8000000000}[number%2])
		}(number)
	}
	// The collector and its signals meanwhile.
	for i := 0; i < 50; i++ {
		runtime.GC()
	}
	all.Wait()
	fmt.Println(guests * calls)
}
