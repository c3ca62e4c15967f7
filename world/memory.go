package world

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
)

// InMemory counts, for each of some values, the places at which a process has it in its
// memory: what a debugger or a core dump would find.
func InMemory(pid int, values [][]byte) (map[string]int, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	pages, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	found := map[string]int{}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var perm string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); err != nil || !strings.HasPrefix(perm, "r") || strings.Contains(line, "[v") {
			continue
		}
		for _, b := range present(mem, pages, from, to) {
			for _, v := range values {
				if n := bytes.Count(b, v); n > 0 {
					found[string(v)] += n
				}
			}
		}
	}
	return found, nil
}

// present reads the pages of a mapping that there are, runs of them as one: what is only
// reserved may be many times more.
func present(mem, pages *os.File, from, to uint64) (runs [][]byte) {
	const page = 4096
	entries := make([]byte, (to-from)/page*8)
	n, _ := pages.ReadAt(entries, int64(from/page*8))
	entries = entries[:n/8*8]
	here := func(i int) bool { // in memory, or swapped out
		return i < len(entries) && binary.LittleEndian.Uint64(entries[i:])&(3<<62) != 0
	}
	for i := 0; i < len(entries); i += 8 {
		start := i
		for here(i) {
			i += 8
		}
		// One call for a whole run: a process has a hundred thousand pages.
		for start < i {
			b := make([]byte, (i-start)/8*page)
			n, _ := mem.ReadAt(b, int64(from)+int64(start/8*page))
			if n -= n % page; n > 0 {
				runs = append(runs, b[:n])
			}
			start += n/page*8 + 8 // past a page that cannot be read, or that was the last
		}
	}
	return runs
}
