import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';
import type { Emit as DomainEmit } from '../domain/telemetry.ts';
import type { BrokerEvents, EventName, EventRow } from './events.ts';
import { events } from './events.ts';
import type { Level } from './log.ts';
import { createLog } from './log.ts';

export interface ObservabilityOptions {
  level: Level;
  format: 'json' | 'text';
  /** Receives one log line with its newline. */
  write: (line: string) => void;
  /** For time stamps; the wall clock by default. */
  now?: () => number;
  /** CPU, memory, event loop and GC of the process. One instance per process should ask for them. */
  processMetrics?: boolean;
}

/** Assignable to the domain's own port, which knows only the domain's events. */
export type Emit = DomainEmit & (<K extends keyof BrokerEvents>(name: K, fields: BrokerEvents[K]) => void);

/** Counts one RPC; made once per method and door, so that a call costs no look-up of labels. */
export type CountRpc = (code: string, durationMs: number) => void;

export interface Observability {
  /** Says that something happened: the table in events.ts decides what is logged and counted. */
  emit: Emit;
  /** Whether an event would be logged; to save the work of gathering its fields. */
  logs(name: EventName): boolean;
  rpc(method: string, door: string): CountRpc;
  /** A value that is read when metrics are scraped. `name` without the `leasehold_` prefix. */
  gauge(name: string, help: string, read: () => number): void;
  /** One value for each combination of labels, of which there must be few. */
  gauges(
    name: string,
    help: string,
    labels: readonly string[],
    read: () => Iterable<{ labels: Record<string, string>; value: number }>,
  ): void;
  /** Prometheus text format. */
  metrics(): Promise<string>;
  metricsContentType: string;
}

export function createObservability(options: ObservabilityOptions): Observability {
  const log = createLog({ now: Date.now, ...options });
  const registry = new Registry();
  if (options.processMetrics === true) collectDefaultMetrics({ register: registry });
  const counters = eventCounters(registry);

  const calls = new Counter({
    name: 'leasehold_rpc_total',
    help: 'RPCs answered, by status code.',
    labelNames: ['method', 'door', 'code'],
    registers: [registry],
  });
  const durations = new Histogram({
    name: 'leasehold_rpc_duration_seconds',
    help: 'Time from receiving an RPC to its answer, or to the end of its stream.',
    labelNames: ['method', 'door'],
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
    registers: [registry],
  });

  return {
    emit(name: EventName, fields: object) {
      const row = events[name] as EventRow<object>;
      const counter = counters.get(name);
      if (counter !== undefined) counter.inc(pick(fields, row.counter?.labels ?? []));
      if (log.enabled(row.level)) log.write(row.level, name, row.line, fields);
    },
    logs: (name) => log.enabled(events[name].level),
    rpc(method, door) {
      const duration = durations.labels(method, door);
      const byCode = new Map<string, Counter.Internal>();
      return (code, durationMs) => {
        let counter = byCode.get(code);
        if (counter === undefined) byCode.set(code, (counter = calls.labels(method, door, code)));
        counter.inc();
        duration.observe(durationMs / 1_000);
      };
    },
    gauge(name, help, read) {
      new Gauge({
        name: `leasehold_${name}`,
        help,
        registers: [registry],
        collect() {
          this.set(read());
        },
      });
    },
    gauges(name, help, labels, read) {
      new Gauge({
        name: `leasehold_${name}`,
        help,
        labelNames: labels,
        registers: [registry],
        collect() {
          this.reset();
          for (const each of read()) this.set(each.labels, each.value);
        },
      });
    },
    metrics: () => registry.metrics(),
    metricsContentType: registry.contentType,
  };
}

function eventCounters(registry: Registry): Map<string, Counter> {
  const counters = new Map<string, Counter>();
  for (const [name, row] of Object.entries(events) as [string, EventRow<object>][]) {
    if (row.counter === undefined) continue;
    const { name: metric, labels } = row.counter;
    counters.set(
      name,
      new Counter({ name: metric, help: `Times that ${row.line}.`, labelNames: labels, registers: [registry] }),
    );
  }
  return counters;
}

function pick(fields: object, labels: readonly string[]): Record<string, string> {
  const picked: Record<string, string> = {};
  for (const label of labels) picked[label] = String((fields as Record<string, unknown>)[label] ?? '');
  return picked;
}
