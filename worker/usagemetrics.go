package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"bulkhead/machine"
	"bulkhead/warden/client"
)

// machineMetric is one metric of each Machine that has a sandbox on this node.
type machineMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(u client.Usage, l machine.Limits) float64
}

// machineLabels: a Machine's app is told with it, since ids say nothing to people.
var machineLabels = []string{"app", "machine"}

func machineGauge(name, help string, value func(client.Usage, machine.Limits) float64) machineMetric {
	return machineMetric{prometheus.NewDesc("bulkhead_machine_"+name, help, machineLabels, nil), prometheus.GaugeValue, value}
}

func machineCounter(name, help string, value func(client.Usage) float64) machineMetric {
	return machineMetric{prometheus.NewDesc("bulkhead_machine_"+name, help, machineLabels, nil), prometheus.CounterValue,
		func(u client.Usage, _ machine.Limits) float64 { return value(u) }}
}

func used(name, help string, value func(client.Usage) float64) machineMetric {
	return machineGauge(name, help, func(u client.Usage, _ machine.Limits) float64 { return value(u) })
}

func limit(name, help string, value func(machine.Limits) float64) machineMetric {
	return machineGauge(name, help, func(_ client.Usage, l machine.Limits) float64 { return value(l) })
}

// machineMetrics are usage and limit of everything that a Machine may use.
var machineMetrics = []machineMetric{
	used("memory_bytes", "Memory in use, the sandbox's own kernel included.", func(u client.Usage) float64 { return float64(u.Memory) }),
	used("memory_limit_bytes", "Memory at which the Machine is killed, the room for the sandbox's own kernel included.", func(u client.Usage) float64 { return float64(u.MemoryLimit) }),
	machineCounter("cpu_seconds_total", "Processor time used.", func(u client.Usage) float64 { return u.CPU.Seconds() }),
	limit("cpu_limit", "Processors that may be used.", func(l machine.Limits) float64 { return float64(l.CPUPercent) / 100 }),
	machineCounter("cpu_throttled_seconds_total", "Time for which threads waited because the processors' share was used up.", func(u client.Usage) float64 { return u.Throttled.Seconds() }),
	used("processes", "Processes and threads inside.", func(u client.Usage) float64 { return float64(u.Inside.Processes) }),
	limit("processes_limit", "Processes and threads that there may be inside.", func(l machine.Limits) float64 { return float64(l.Processes) }),
	used("host_tasks", "Processes and threads of the sandbox on the host.", func(u client.Usage) float64 { return float64(u.Tasks) }),
	used("host_tasks_limit", "Processes and threads that the sandbox may have on the host.", func(u client.Usage) float64 { return float64(u.TasksLimit) }),
	used("disk_bytes", "Bytes of the writable layer in use.", func(u client.Usage) float64 { return float64(u.Inside.DiskUsed) }),
	limit("disk_limit_bytes", "Bytes that the writable layer may have.", func(l machine.Limits) float64 { return float64(l.DiskMB << 20) }),
	used("inodes", "Inodes of the writable layer in use.", func(u client.Usage) float64 { return float64(u.Inside.InodesUsed) }),
	limit("inodes_limit", "Inodes that the writable layer may have.", func(l machine.Limits) float64 { return float64(l.Inodes) }),
	limit("open_files_limit", "Files that each process may have open.", func(l machine.Limits) float64 { return float64(l.OpenFiles) }),
	machineCounter("network_sent_bytes_total", "Bytes that the Machine sent.", func(u client.Usage) float64 { return float64(u.Sent.Bytes) }),
	machineCounter("network_received_bytes_total", "Bytes that were sent to the Machine.", func(u client.Usage) float64 { return float64(u.Received.Bytes) }),
	machineCounter("network_sent_packets_total", "Packets that the Machine sent.", func(u client.Usage) float64 { return float64(u.Sent.Packets) }),
	machineCounter("network_received_packets_total", "Packets that were sent to the Machine.", func(u client.Usage) float64 { return float64(u.Received.Packets) }),
	machineCounter("network_sent_dropped_packets_total", "Packets of the Machine that were beyond its rate.", func(u client.Usage) float64 { return float64(u.Sent.Dropped) }),
	machineCounter("network_received_dropped_packets_total", "Packets to the Machine that were beyond its rate.", func(u client.Usage) float64 { return float64(u.Received.Dropped) }),
	limit("network_limit_bits", "Bits a second that the Machine may send, and as many that may be sent to it.", func(l machine.Limits) float64 { return float64(l.NetworkMbps) * 1e6 }),
	limit("log_limit_bytes", "Bytes a second that the Machine may print.", func(l machine.Limits) float64 { return float64(l.LogKBPerSecond << 10) }),
}

// machineLogDropped and machineHits are the ones that are not a function of one value.
var (
	machineLogDropped = prometheus.NewDesc("bulkhead_machine_log_lines_dropped_total", "Lines that the Machine printed beyond its rate.", machineLabels, nil)
	machineHits       = prometheus.NewDesc("bulkhead_machine_limit_hits_total", "How often the Machine met a limit.", append([]string{"limit"}, machineLabels...), nil)
)

// collectUsage gives the metrics of each Machine in a warden's answer.
func (w *Worker) collectUsage(ch chan<- prometheus.Metric, usage []client.Usage) {
	for _, u := range usage {
		w.mu.Lock()
		s := w.seen[u.Machine]
		w.mu.Unlock()
		if s == nil {
			continue
		}
		cfg, err := configOf(s.asg)
		if err != nil {
			continue
		}
		l, app, id := cfg.EffectiveLimits(), s.asg.GetApp(), string(u.Machine)
		for _, m := range machineMetrics {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(u, l), app, id)
		}
		ch <- prometheus.MustNewConstMetric(machineLogDropped, prometheus.CounterValue, float64(w.logs.DroppedOf(u.Machine)), app, id)
		for _, h := range w.hits(cfg, u) {
			ch <- prometheus.MustNewConstMetric(machineHits, prometheus.CounterValue, float64(h.Count), h.Limit, app, id)
		}
	}
}
