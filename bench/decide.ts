import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { nothingYet } from '../src/domain/facts.ts';
import type { DecisionInput, PolicyRevision } from '../src/domain/policy.ts';
import { loadPolicyDirectory } from '../src/policy/load-policy.ts';
import type { Arguments } from './arguments.ts';
import { writePolicy, type PolicySize } from './decide-estate.ts';
import { median } from './statistics.ts';

const large: PolicySize = { agents: 1_000, tools: 1_000, rules: 10_000 };
/** Hardly any rules but those of ten agents. */
const small: PolicySize = { agents: 10, tools: 10, rules: 100 };
const targets = { loadMs: 2_000, p50Us: 20, growth: 1.5 };
const batch = 64;

interface Measured {
  size: PolicySize;
  /** Reading, checking and compiling: the first time in this process, and the median of the later ones. */
  coldMs: number;
  /** What the processor did of the first time; the rest was waiting for others on this machine. */
  coldCpuMs: number;
  warmMs: number;
  p50Us: number;
  p99Us: number;
}

/** Load and check of a large estate's policy, and one decision under it. Gives the exit code. */
export async function measureDecide(args: Arguments, progress: (line: string) => void): Promise<number> {
  const dir = await mkdtemp(path.join(args.dir ?? tmpdir(), 'leasehold-bench-policy-'));
  try {
    const [many, few] = [path.join(dir, 'large'), path.join(dir, 'small')];
    await writePolicy(many, large);
    await writePolicy(few, small);
    const cold = await load(many);
    const warm: number[] = [];
    for (let round = 0; round < args.rounds; round++) warm.push((await load(many)).ms);
    progress(`loaded ${large.rules} rules ${args.rounds + 1} times`);
    const reference = await load(few);
    // In turns, so that what else the machine does meets both alike.
    const contenders = {
      all: { revision: cold.revision, inputs: inputsOf(large, large.agents), samples: [] as number[] },
      ten: { revision: cold.revision, inputs: inputsOf(large, small.agents), samples: [] as number[] },
      small: { revision: reference.revision, inputs: inputsOf(small, small.agents), samples: [] as number[] },
    };
    for (const { revision, inputs } of Object.values(contenders)) decideFor(500, revision, inputs);
    const slice = (args.seconds * 1_000) / args.rounds / 3;
    for (let round = 0; round < args.rounds; round++) {
      for (const one of Object.values(contenders)) one.samples.push(...decideFor(slice, one.revision, one.inputs));
    }
    const growth = median(contenders.ten.samples) / median(contenders.small.samples);
    const loaded = { size: large, coldMs: cold.ms, coldCpuMs: cold.cpuMs, warmMs: median(warm) };
    return report({ ...loaded, ...spread(contenders.all.samples) }, growth, args.json, progress);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function load(directory: string): Promise<{ revision: PolicyRevision; ms: number; cpuMs: number }> {
  const start = performance.now();
  const before = process.cpuUsage();
  const result = await loadPolicyDirectory(directory);
  const ms = performance.now() - start;
  if (!result.ok) throw new Error(`the benchmark's policy is invalid: ${result.issues[0]?.message}`);
  const { user, system } = process.cpuUsage(before);
  return { revision: result.revision, ms, cpuMs: (user + system) / 1_000 };
}

/** Ready before the clock runs: an issue has these at hand as well. */
function inputsOf({ tools, rules }: PolicySize, agents: number): DecisionInput[] {
  const now = Date.UTC(2026, 2, 2, 12);
  return Array.from({ length: Math.min(rules, 4_096) }, (_, n) => ({
    task: {
      taskId: 'tsk_bench',
      parentTaskId: undefined,
      agent: `agent-${n % agents}`,
      opener: 'spiffe://acme.test/orchestrator',
      context: { ticket: 'CHG-1' },
      labels: {},
      openedAt: now - 60_000,
      deadline: now + 3_600_000,
    },
    workload: `spiffe://acme.test/agent/${n % agents}`,
    access: { tool: `tool-${((n % agents) * 7) % tools}`, tier: 'read' as const },
    now: now + n,
    renewal: undefined,
    arguments: {},
    // As storage answers for a task that has had nothing yet: rules with limits on renewal ask for that.
    facts: nothingYet,
  }));
}

/** Microseconds of one decision, each the mean of a batch: a single one is shorter than the clock is exact. */
function decideFor(ms: number, revision: PolicyRevision, inputs: readonly DecisionInput[]): number[] {
  const samples: number[] = [];
  const end = performance.now() + ms;
  let at = 0;
  let effects = 0;
  for (let now = performance.now(); now < end;) {
    for (let i = 0; i < batch; i++)
      effects += revision.decide(inputs[at++ % inputs.length]!).effect === 'allow' ? 1 : 0;
    const after = performance.now();
    samples.push(((after - now) * 1_000) / batch);
    now = after;
  }
  if (effects === 0) throw new Error('the benchmark’s policy allows nothing: what was measured is not a decision');
  return samples;
}

function spread(samples: number[]): { p50Us: number; p99Us: number } {
  const sorted = samples.toSorted((a, b) => a - b);
  return { p50Us: median(sorted), p99Us: sorted[Math.floor(sorted.length * 0.99)]! };
}

function report(measured: Measured, growth: number, json: boolean, progress: (line: string) => void): number {
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  const { size, coldMs, coldCpuMs, warmMs, p50Us, p99Us } = measured;
  if (json) print(JSON.stringify({ scenario: 'decide', ...size, coldMs, coldCpuMs, warmMs, p50Us, p99Us, growth }));
  else {
    print(`decide: ${size.rules} rules, ${size.tools} tools, ${size.agents} agents`);
    print(
      `  load and check ${coldMs.toFixed(0)} ms the first time (${coldCpuMs.toFixed(0)} ms of processor), ${warmMs.toFixed(0)} ms later`,
    );
    print(`  a decision, over all agents: p50 ${p50Us.toFixed(2)} µs, p99 ${p99Us.toFixed(2)} µs`);
  }
  const checks: [string, number, number][] = [
    ['load and check of 10,000 rules, ms', coldMs, targets.loadMs],
    ['a decision, p50 in µs', p50Us, targets.p50Us],
    ['decisions for ten agents among 10,000 rules, over the same among 100', growth, targets.growth],
  ];
  for (const [what, got, wanted] of checks) {
    const line = `${got < wanted ? 'met   ' : 'MISSED'} ${what}: ${got.toFixed(2)} (wanted < ${wanted})`;
    if (json) progress(line);
    else print(line);
  }
  return checks.every(([, got, wanted]) => got < wanted) ? 0 : 1;
}
