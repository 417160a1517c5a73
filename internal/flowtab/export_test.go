package flowtab

// LongestChain returns the length of the longest hash chain.
func (t *Table[V]) LongestChain() int {
	longest := 0
	for _, i := range t.buckets {
		n := 0
		for ; i != 0; i = t.places[i].next {
			n++
		}
		longest = max(longest, n)
	}
	return longest
}
