import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';
import { expect } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import {
  askInModel,
  emptyModel,
  isQuarantined,
  issueOutcome,
  isVouched,
  quarantines,
  stopInModel,
  takeApproval,
  type Access,
  type AgentName,
  type Model,
  type ModelLease,
  type ModelSignal,
  type ModelTask,
} from './reference.ts';
import {
  command,
  eventually,
  index,
  issueAt,
  pick,
  received,
  replica,
  type Command,
  type ReplicaIndex,
} from './steps.ts';
import { answered, signalSources, toolAndTier, type Replica, type SignalSource, type World } from './world.ts';

type Kind = ModelSignal['kind'];
type Subject = ModelSignal['subject'];

/** How a request that nobody makes shows what a replica knows: whether a rule that reads signals applies. */
interface Probe {
  rule: string;
  request: { taskId?: string; agent?: string; workload?: string; access: ReturnType<typeof toolAndTier> };
  applies: boolean;
}

interface Known {
  probes: Probe[];
  /** What there is, some of it hidden behind the rest. */
  said: string;
}

function knownTo(model: Model): Known {
  const effective = model.signals.filter((signal) => quarantines(signal) || signal.kind === 'x_vouched');
  return {
    probes: probes(model),
    said: effective
      .map(({ subject, kind }) => `${kind} ${named(subject).value}`)
      .sort()
      .join(),
  };
}

/** What the model expects: of each agent with each tool, and of each task that may read. */
function probes(model: Model): Probe[] {
  const quarantine = (task: ModelTask, access: Access, request: Omit<Probe['request'], 'access'>): Probe => ({
    rule: 'model/quarantine',
    request: { ...request, access: toolAndTier(access) },
    applies: isQuarantined(model, task, access),
  });
  const reads = (['api:read', 'db:read'] as const).flatMap((access) => [
    ...(['alpha', 'beta'] as const).map((agent) =>
      quarantine(imagined(agent), access, { agent, workload: devWorkload(`agent/${agent}`) }),
    ),
    ...model.tasks
      .filter(({ tools }) => tools.includes(access))
      .map((task) => quarantine(task, access, { taskId: task.taskId })),
  ]);
  const vouched: Probe = {
    rule: 'model/vouched',
    request: { agent: 'beta', access: toolAndTier('api:execute') },
    applies: isVouched(model, 'beta'),
  };
  return [...reads, vouched];
}

/** One that has nothing above it, and of which itself nothing is said. */
function imagined(agent: AgentName): ModelTask {
  return {
    taskId: '',
    parent: undefined,
    agent,
    tools: [],
    open: true,
    openedAt: 0,
    deadline: Infinity,
    leases: [],
    approvals: [],
  };
}

/**
 * The replica that took a signal knows of it when it answers; the other within a second. What it takes in comes in order,
 * so that one thing that is different now shows all of it.
 */
async function heard({ replicas }: World, at: ReplicaIndex, before: Known, model: Model): Promise<void> {
  const after = knownTo(model);
  const changed = after.probes.find((probe, n) => probe.applies !== before.probes[n]!.applies);
  if (changed === undefined) return await sleep(after.said === before.said ? 0 : 1_000);
  expect(await applies(replicas[at], changed)).toBe(changed.applies);
  const other = replicas[1 - at]!;
  await eventually('a signal on the other replica', async () => (await applies(other, changed)) === changed.applies);
}

/** What is allowed or denied because of signals. */
const isWatched = (access: Access) => access.endsWith(':read') || access === 'api:execute';

/** After a sequence: nothing is said any more, and both replicas know it. */
export async function cleared({ replicas, clock }: World): Promise<void> {
  for (const replica of replicas) {
    for (const probe of probes(emptyModel(clock.now))) {
      await eventually('a replica to which nothing is said', async () => !(await applies(replica, probe)));
    }
  }
}

async function applies({ policy }: Replica, { rule, request }: Probe): Promise<boolean> {
  const { rules } = await policy.explainDecision({ subject: { case: 'hypothetical', value: request } });
  return rules.some((one) => one.rule === rule && one.taskId === '' && one.matched);
}

/** Each is on its way out, because of a signal. */
export async function stopped({ database }: World, leases: readonly ModelLease[]): Promise<void> {
  if (leases.length === 0) return;
  await eventually('leases that a signal stops', async () => {
    const { rows } = await database.query<{ state: string; cause: string | null }>(
      'SELECT state, settle_cause AS cause FROM leases WHERE lease_id = ANY($1)',
      [leases.map(({ leaseId }) => leaseId)],
    );
    for (const { state, cause } of rows) if (state !== 'active') expect(cause).toBe('signal');
    return rows.every(({ state }) => state !== 'active');
  });
}

/** On which requests are under way on both replicas; none that it concerns succeeds that begins after it was taken. */
function report(
  [kind, value]: readonly [Kind, number],
  about: Subject['kind'],
  at: number,
  source: SignalSource,
  minutes: number | undefined,
  replica: ReplicaIndex,
): Command {
  const time = minutes === undefined ? '' : `, ${minutes} min`;
  const text = `signal(${kind} ${value}, ${about} ${at}, ${source}${time}, r${replica}) ‖ issues`;
  return command(text, 'task', async (model, world) => {
    const { replicas } = world;
    // What matters is what is in use.
    const using = model.tasks.filter(({ open, tools }) => open && tools.some(isWatched));
    const task = pick(using.length > 0 ? using : model.tasks, at);
    const access = pick(task.tools.some(isWatched) ? task.tools.filter(isWatched) : task.tools, at);
    const subject = subjectOf(about, at, task, access);
    const known = knownTo(model);
    const before = issueOutcome(model, task, task.agent, access);
    const requestIds = Array.from({ length: 4 }, () => randomUUID());
    const issues = requestIds.map((id, n) => issueAt(replicas[(n % 2) as ReplicaIndex], task, task.agent, access, id));
    const expiresAt = minutes === undefined ? Infinity : model.now() + minutes * 60_000;
    const { signals } = await replicas[replica].signals[source].reportSignals({
      signals: [
        {
          subject: { subject: named(subject) },
          kind,
          value,
          reason: 'the model says so',
          ...(minutes === undefined ? {} : { expireTime: timestampFromMs(expiresAt) }),
        },
      ],
    });
    expect(signals).toHaveLength(1);
    const said: ModelSignal = { signalId: signals[0]!.signalId, subject, source, kind, value, expiresAt };
    model.signals = [...model.signals.filter((earlier) => !isWordOf(earlier, said)), said];
    const after = issueOutcome(model, task, task.agent, access);
    if (after === 'refused') {
      expect(await issueAt(replicas[replica], task, task.agent, access, randomUUID())).toHaveProperty('refused');
    }
    await heard(world, replica, known, model);
    for (const [n, result] of (await Promise.all(issues)).entries()) {
      if ('refused' in result) {
        const { approval } = result.refused;
        if (approval !== undefined) askInModel(model, task, approval);
        continue;
      }
      expect([before, after]).toContain('granted');
      takeApproval(task, access);
      task.leases.push(received(model, task, access, requestIds[n]!, result.answer.credential!));
    }
    await stopped(world, stopInModel(model));
  });
}

function subjectOf(kind: Subject['kind'], at: number, task: ModelTask, access: Access): Subject {
  if (kind === 'task') return { kind, task };
  if (kind === 'tool') return { kind, tool: access.startsWith('api:') === at % 4 > 0 ? 'api' : 'db' };
  return { kind, agent: (task.agent === 'alpha') === at % 4 > 0 ? 'alpha' : 'beta' };
}

function named(subject: Subject) {
  if (subject.kind === 'task') return { case: 'taskId' as const, value: subject.task.taskId };
  if (subject.kind === 'tool') return { case: 'tool' as const, value: subject.tool };
  if (subject.kind === 'agent') return { case: 'agent' as const, value: subject.agent };
  return { case: 'workload' as const, value: devWorkload(`agent/${subject.agent}`) };
}

function isWordOf(one: ModelSignal, other: ModelSignal): boolean {
  const { case: kind, value } = named(one.subject);
  const its = named(other.subject);
  return one.source === other.source && one.kind === other.kind && its.case === kind && its.value === value;
}

/** Nothing is given back, but what is asked for now is decided without it. By an operator, or by who said it. */
function clear(at: number, byOperator: boolean, replica: ReplicaIndex): Command {
  return command(
    `clear(${at}${byOperator ? ', by an operator' : ''}, r${replica})`,
    'nothing',
    async (model, world) => {
      if (model.signals.length === 0) return;
      const known = knownTo(model);
      const over = pick(model.signals, at);
      const { operator, scanner } = world.replicas[replica].signals;
      const cleared = await answered(
        (byOperator || over.source === 'operator' ? operator : scanner).clearSignals({ signalIds: [over.signalId] }),
      );
      expect(cleared).toHaveProperty('answer');
      model.signals = model.signals.filter((signal) => signal !== over);
      await heard(world, replica, known, model);
      await stopped(world, stopInModel(model));
    },
  );
}

const source = fc.constantFrom(...signalSources);
const said = fc.constantFrom(
  ...([
    ['x_quarantine', 100],
    ['risk', 70],
    ['risk', 69],
  ] as const),
);
const subjects = fc.constantFrom<Subject['kind']>('agent', 'workload', 'tool', 'task');
const time = fc.constantFrom(undefined, 4, 40);

const reports = fc.tuple(said, subjects, index, source, time, replica).map((args) => report(...args));

export const signalCommands = [
  reports,
  reports,
  reports,
  fc
    .tuple(index, source, time, replica)
    .map(([at, by, until, where]) => report(['x_vouched', 100], 'agent', at, by, until, where)),
  fc.tuple(index, fc.boolean(), replica).map((args) => clear(...args)),
  fc.tuple(index, fc.boolean(), replica).map((args) => clear(...args)),
];
