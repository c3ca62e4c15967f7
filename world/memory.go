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
	joined := false
	for i := 0; i+8 <= n; i += 8 {
		const here = 3 << 62 // in memory, or swapped out
		if binary.LittleEndian.Uint64(entries[i:])&here == 0 {
			joined = false
			continue
		}
		if !joined {
			runs, joined = append(runs, nil), true
		}
		last := &runs[len(runs)-1]
		at := len(*last)
		*last = append(*last, make([]byte, page)...)
		if _, err := mem.ReadAt((*last)[at:], int64(from)+int64(i/8*page)); err != nil {
			*last, joined = (*last)[:at], false
		}
	}
	return runs
}
