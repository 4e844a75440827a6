import {
  closeTreeScenario,
  decideScenario,
  parseArguments,
  replayScenario,
  signalScenario,
  settleVaultScenario,
  usage,
  UsageError,
  type Arguments,
} from './arguments.ts';
import { measureCloseTree } from './close-tree.ts';
import { measureDecide } from './decide.ts';
import { startMachine, type Estate, type Machine } from './estate.ts';
import { addOpenLeases, endLeasesOf } from './open-leases.ts';
import { measureReplay } from './replay.ts';
import { pointJson, table, targets, type Point } from './report.ts';
import { measureSettleVault } from './settle-vault.ts';
import { scenarios, type Scenario } from './scenarios.ts';
import { measureSignalSettle } from './signal-settle.ts';
import { median, summarise, type Sample } from './statistics.ts';

/** One scenario against one broker: what takes turns. */
interface Contender {
  scenario: Scenario;
  estate: Estate;
  openLeases: number | undefined;
}

/**
 * For each contender, many in flight, so that also the first point finds compiled code: a function is compiled after some
 * thousand calls, which a slow target does not give in a second or two.
 */
const warmUp = { concurrency: 16, seconds: 2, operations: 2_000, mostSlices: 8 };
/** Before each point. */
const settleInSeconds = 0.5;

/** Not calls that a load makes: each is measured in its own way. */
const byThemselves = new Set([decideScenario, replayScenario, signalScenario, closeTreeScenario, settleVaultScenario]);

class Interrupted extends Error {}

const progress = (line: string) => void process.stderr.write(`bench: ${line}\n`);

async function main(argv: readonly string[]): Promise<number> {
  const args = parseArguments(argv);
  if (args === 'help') {
    process.stdout.write(`${usage}\n`);
    return 0;
  }
  const asked = (name: string) => args.scenarios.has(name);
  let missed = asked(decideScenario) ? await measureDecide(args, progress) : 0;
  const own = [replayScenario, signalScenario, closeTreeScenario, settleVaultScenario].filter(asked);
  // echo and commit are references: asked for alone, or measured beside something else.
  const others = [...args.scenarios].filter((name) => name !== 'echo' && name !== 'commit');
  const calls = others.length === 0 || others.some((name) => !byThemselves.has(name));
  if (own.length === 0 && !calls) return missed;
  progress('starting PostgreSQL and the load process');
  const machine = await startMachine(args.dir, args);
  const interrupted = new Promise<never>((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const)
      process.once(signal, () => reject(new Interrupted(`ended by ${signal}`)));
  });
  const measure = async () => {
    if (asked(replayScenario)) missed = Math.max(missed, await measureReplay(machine, args, progress));
    if (asked(signalScenario)) missed = Math.max(missed, await measureSignalSettle(machine, args, progress));
    if (asked(closeTreeScenario)) missed = Math.max(missed, await measureCloseTree(machine, args, progress));
    if (asked(settleVaultScenario)) {
      missed = Math.max(missed, await measureSettleVault(machine, args, args.vault!, progress));
    }
    return calls ? Math.max(missed, await measureAll(machine, args)) : missed;
  };
  try {
    return await Promise.race([measure(), interrupted]);
  } finally {
    await machine.stop();
  }
}

async function measureAll(machine: Machine, args: Arguments): Promise<number> {
  progress(
    Object.entries(machine.settings)
      .map(([name, value]) => `${name} ${value}`)
      .join(', '),
  );
  const contenders = await enter(machine, args);
  for (const contender of contenders) {
    let operations = 0;
    for (let n = 0; n < warmUp.mostSlices && operations < warmUp.operations; n++) {
      const { slice: warm } = await slice(machine, contender, warmUp.concurrency, warmUp.seconds);
      operations += warm.result.latencies.length;
    }
    progress(`${nameOf(contender)}: warm after ${operations} operations`);
  }
  // Statistics as the server gathers them within a minute by itself: in the middle of a measurement, if not now.
  for (const estate of new Set(contenders.map(({ estate }) => estate))) await estate.database.query('ANALYZE');
  const points: Point[] = [];
  for (const concurrency of args.concurrency) {
    const found = await compare(machine, args, contenders, concurrency);
    points.push(...found);
    if (args.json) for (const point of found) process.stdout.write(`${pointJson(point)}\n`);
  }
  if (!args.json) process.stdout.write(`${table(points)}\n\n`);
  for (const { target, wanted, got, met } of targets(points)) {
    const line = `${met ? 'met   ' : 'MISSED'} ${target}: ${got.toFixed(2)} (wanted ${wanted})`;
    if (args.json) progress(line);
    else process.stdout.write(`${line}\n`);
  }
  const failed = points.filter((point) => point.errors > 0);
  for (const { scenario, concurrency, errors, messages } of failed) {
    progress(`${scenario} at ${concurrency}: ${errors} errors, such as: ${messages.join('; ')}`);
  }
  return failed.length === 0 ? 0 : 1;
}

async function enter(machine: Machine, args: Arguments): Promise<Contender[]> {
  const chosen = scenarios.filter(({ name }) => args.scenarios.has(name));
  const withVault = chosen.some(({ name }) => name === 'issue-vault');
  const options = {
    ...(args.profileDir === undefined ? {} : { profileDir: args.profileDir }),
    ...(withVault && args.vault !== undefined ? { vault: args.vault } : {}),
  };
  if (args.openLeases.length === 0) {
    const estate = await machine.startBroker('bench', options);
    return chosen.map((scenario) => ({ scenario, estate, openLeases: undefined }));
  }
  const contenders: Contender[] = [];
  for (const openLeases of args.openLeases) {
    progress(`preparing a broker with ${openLeases} open leases`);
    const estate = await machine.startBroker(`bench_${openLeases}`, options);
    await addOpenLeases(estate, openLeases);
    // The references once: they do not depend on leases.
    const own = chosen.filter(({ name }) => contenders.length === 0 || name === 'issue-jwt');
    contenders.push(...own.map((scenario) => ({ scenario, estate, openLeases })));
  }
  return contenders;
}

/** Slices of all contenders in turn, so that what else the machine does meets all of them alike. */
async function compare(
  machine: Machine,
  args: Arguments,
  contenders: readonly Contender[],
  concurrency: number,
): Promise<Point[]> {
  const samples = new Map<Contender, Sample>(contenders.map((contender) => [contender, { slices: [], rssBytes: 0 }]));
  for (const contender of contenders) await slice(machine, contender, concurrency, settleInSeconds);
  for (let round = 0; round < args.rounds; round++) {
    for (const contender of contenders) {
      const sample = samples.get(contender)!;
      const done = await slice(machine, contender, concurrency, args.seconds / args.rounds);
      sample.slices.push(done.slice);
      sample.rssBytes = done.rssBytes;
    }
    progress(`${concurrency} in flight: round ${round + 1} of ${args.rounds}`);
  }
  return pointsOf(samples, concurrency);
}

async function slice(
  machine: Machine,
  { scenario, estate, openLeases }: Contender,
  concurrency: number,
  seconds: number,
) {
  const { work, after, tasks } = await scenario.prepare(estate, concurrency, seconds);
  const before = await estate.usage();
  const result = await machine.load({ work, concurrency, seconds });
  const { cpu, rssBytes } = await estate.usage();
  if (result.latencies.length === 0)
    throw new Error(`${scenario.name}: no call succeeded: ${result.messages.join('; ')}`);
  // With errors the count of answers proves nothing: they are reported instead.
  if (result.errors === 0) await after?.(result);
  if (openLeases !== undefined && tasks !== undefined) await endLeasesOf(estate, tasks);
  return { slice: { result, brokerCpu: cpu - before.cpu }, rssBytes };
}

function pointsOf(samples: ReadonlyMap<Contender, Sample>, concurrency: number): Point[] {
  const all = [...samples].map(([contender, sample]) => ({ contender, sample, measured: summarise(sample) }));
  const reference = (name: string, variant?: string) =>
    all.find(({ contender: { scenario } }) => scenario.name === name && scenario.variant === variant);
  const [echo, commit, bare] = [
    reference('echo')!.sample,
    reference('commit')!.sample,
    reference('issue-postgres', 'bare')?.sample,
  ];
  const direct = reference('issue-vault', 'direct');
  const fewest = all
    .filter(({ contender }) => contender.scenario.name === 'issue-jwt' && contender.openLeases !== undefined)
    .sort((a, b) => a.contender.openLeases! - b.contender.openLeases!)[0]?.sample;
  const p50 = reference('echo')!.measured.p50 + reference('commit')!.measured.p50;
  return all.map(({ contender: { scenario, openLeases }, sample, measured }) => {
    const { name, variant } = scenario;
    const isIssue = name === 'issue-postgres' && variant === undefined;
    const toDirect = name === 'issue-vault' && variant === undefined ? direct : undefined;
    const isLarger = name === 'issue-jwt' && fewest !== undefined && fewest !== sample;
    return {
      ...measured,
      scenario: name,
      variant,
      concurrency,
      openLeases: name === 'issue-jwt' ? openLeases : undefined,
      against: {
        echoRate: ratio(sample, echo),
        commitRate: ratio(sample, commit),
        p50: measured.p50 / p50,
        bareRate: isIssue && bare !== undefined ? ratio(sample, bare) : undefined,
        directRate: toDirect && ratio(sample, toDirect.sample),
        directP50: toDirect && measured.p50 - toDirect.measured.p50,
        fewestLeasesRate: isLarger ? ratio(sample, fewest) : undefined,
      },
    };
  });
}

/** Median over the rounds of the ratio of the two rates in the same round. */
function ratio(sample: Sample, reference: Sample): number {
  const rate = ({ result }: Sample['slices'][number]) => result.latencies.length / result.elapsedMs;
  return median(sample.slices.map((slice, round) => rate(slice) / rate(reference.slices[round]!)));
}

function nameOf({ scenario: { name, variant }, openLeases }: Contender): string {
  return [name, variant, openLeases === undefined ? undefined : `with ${openLeases} open leases`]
    .filter((part) => part !== undefined)
    .join(' ');
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`bench: ${described(error)}\n`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}

function described(error: unknown): string {
  if (error instanceof UsageError) return `${error.message}\n\n${usage}`;
  if (error instanceof Interrupted) return error.message;
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
