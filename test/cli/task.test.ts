import { durationFromMs, timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import { afterEach, describe, expect, test } from 'vitest';
import { Effect, LeaseOutcome, LeaseState, TaskState, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import type {
  CloseTaskRequest,
  ExtendTaskRequest,
  ListTasksRequest,
  OpenTaskRequest,
} from '../../src/gen/leasehold/v1/task_service_pb.js';
import { bearerOf, refusal, startFakeBroker, type FakeBroker, type Handlers } from './fake-broker.ts';
import { runCli, startCli, type CliResult } from './run-cli.ts';
import { leaseId, requestId, sampleLease, sampleTask, taskId } from './samples.ts';
import { Code } from '@connectrpc/connect';

let broker: FakeBroker | undefined;
afterEach(async () => {
  await broker?.stop();
  broker = undefined;
});

async function cli(handlers: Handlers, ...args: string[]): Promise<CliResult> {
  broker = await startFakeBroker(handlers);
  return await runCli(args, { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'caller.token' });
}

const openArgs = ['task', 'open', 'Reconcile invoices', '--agent', 'reconciler', '--tool', 'warehouse:read'];

describe('task open', () => {
  const plan = [
    {
      tool: 'warehouse',
      tier: Tier.READ,
      effect: Effect.ALLOW,
      reason: 'Analysts may read.',
      policyRule: 'analysts/read',
      ttl: durationFromMs(300_000),
    },
    { tool: 'warehouse', tier: Tier.WRITE, effect: Effect.DENY, reason: 'No rule allows it.' },
  ];

  test('sends what the options say, with the attestation in the call', async () => {
    let seen: OpenTaskRequest | undefined;
    let bearer: string | null = null;
    const handlers: Handlers = {
      task: {
        openTask: (request, context) => {
          seen = request;
          bearer = bearerOf(context);
          return { task: sampleTask(), plan };
        },
      },
    };
    const more = [
      '--tool',
      'warehouse:write',
      '--context',
      'ticket=OPS-7',
      '--context',
      'note=a=b',
      '--label',
      'env=prod',
      '--ttl',
      '1h30m',
    ];
    const result = await cli(
      handlers,
      ...openArgs,
      ...more,
      '--heartbeat',
      '30s',
      '--agent-workload',
      'spiffe://example.org/a',
    );
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(bearer).toBe('Bearer caller.token');
    expect(seen).toMatchObject({
      intent: 'Reconcile invoices',
      agent: 'reconciler',
      agentWorkload: 'spiffe://example.org/a',
      tools: [
        { tool: 'warehouse', tier: Tier.READ },
        { tool: 'warehouse', tier: Tier.WRITE },
      ],
      context: { ticket: 'OPS-7', note: 'a=b' },
      labels: { env: 'prod' },
      ttl: { seconds: 5400n },
      heartbeatInterval: { seconds: 30n },
    });
    expect(seen!.deadline).toBeUndefined();
    expect(seen!.requestId).toMatch(/^[0-9a-f-]{36}$/);
  });

  test('shows the task and the plan as aligned columns, without colour in a pipe', async () => {
    const { stdout } = await cli({ task: { openTask: () => ({ task: sampleTask(), plan }) } }, ...openArgs);
    expect(stdout).toMatch(/^task +tsk_0+1\nstate +open\n/);
    expect(stdout).toMatch(/^deadline +\S+Z \(in 10h (29|30)m\)$/m);
    const lines = stdout.split('\n').filter((line) => /^(TOOL|warehouse) /.test(line));
    expect(lines).toHaveLength(3);
    expect(lines[1]).toMatch(/read +allow +5m +- +Analysts may read\. \[analysts\/read\]$/);
    expect(lines[2]!.indexOf('deny')).toBe(lines[1]!.indexOf('allow'));
    expect(stdout).not.toContain('\u001b');
  });

  test('--json prints the answer as one line of protobuf JSON, defaults included', async () => {
    const { stdout } = await cli({ task: { openTask: () => ({ task: sampleTask(), plan }) } }, ...openArgs, '--json');
    expect(stdout.split('\n')).toHaveLength(2);
    const answer = JSON.parse(stdout);
    expect(answer.task).toMatchObject({
      taskId,
      state: 'TASK_STATE_OPEN',
      parentTaskId: '',
      closeCause: 'CLOSE_CAUSE_UNSPECIFIED',
    });
    expect(answer.plan[0]).toMatchObject({ effect: 'EFFECT_ALLOW', ttl: '300s' });
  });

  test.each([
    [['--tool', 'warehouse'], '--tool'],
    [['--tool', 'warehouse:admin'], '--tool'],
    [['--ttl', 'soon'], '--ttl'],
    [['--ttl', '0s'], '--ttl'],
    [['--deadline', 'tomorrow'], '--deadline'],
    [['--deadline', '2026-01-31 18:00'], '--deadline'],
    [['--context', 'Ticket=1'], '--context'],
    [['--context', 'ticket'], '--context'],
    [['--context', 'a=1', '--context', 'a=2'], '--context'],
    [['--label', 'Env=prod'], '--label'],
    [['--label', 'env=a', '--label', 'env=b'], '--label'],
    [['--ttl', '5m', '--deadline', '2026-01-31T18:00:00Z'], '--ttl and --deadline'],
    [['--request-id', 'again'], '--request-id'],
    [['--server', 'ftp://x'], '--server'],
    [['--timeout', '-1s'], '--timeout'],
  ])('%j is refused by name before anything is sent', async (more, named) => {
    let calls = 0;
    const handlers: Handlers = { task: { openTask: () => (calls++, { task: sampleTask() }) } };
    const { code, stderr } = await cli(handlers, ...openArgs, ...more);
    expect(code).toBe(2);
    expect(stderr).toContain(named);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
    expect(calls).toBe(0);
  });

  test('text of others cannot move the cursor of a terminal', async () => {
    const intent = 'x\u001b[2J\u001b]0;owned\u0007\r\nstate  closed \u202e';
    const { stdout } = await cli({ task: { openTask: () => ({ task: sampleTask({ intent }) }) } }, ...openArgs);
    expect(stdout).toContain('intent    x\\x1b[2J\\x1b]0;owned\\x07\\x0d\\x0astate  closed \\u202e\n');
  });
});

describe('task get and list', () => {
  test('get shows the leases with their outcomes', async () => {
    const leases = [
      sampleLease(),
      sampleLease({ state: LeaseState.SETTLED, outcome: LeaseOutcome.REVOKED }),
      sampleLease({ state: LeaseState.SETTLING, settleAttempts: 3, settleError: 'the target refuses' }),
    ];
    const summary = { unsettled: 2, revoked: 1 };
    const { code, stdout } = await cli(
      { task: { getTask: () => ({ task: sampleTask(), leases, summary }) } },
      'task',
      'get',
      taskId,
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/warehouse +read +active +1h 30m ago +in 10h (29|30)m +immediate/);
    expect(stdout).toMatch(/revoked/);
    expect(stdout).toMatch(/settling.*3 attempts: the target refuses/);
    expect(stdout).toMatch(/\n2 unsettled, 1 revoked\n$/);
  });

  test('list follows pages up to the limit, and says how to go on', async () => {
    const seen: ListTasksRequest[] = [];
    const handlers: Handlers = {
      task: {
        listTasks: (request) => {
          seen.push(request);
          const page = Number(request.pageToken || '0');
          return {
            tasks: Array.from({ length: request.pageSize }, () => sampleTask()),
            nextPageToken: String(page + 1),
          };
        },
      },
    };
    const { stdout } = await cli(handlers, 'task', 'list', '--state', 'open', 'closing', '--limit', '1500', '--json');
    expect(seen.map(({ pageSize, pageToken }) => [pageSize, pageToken])).toEqual([
      [1000, ''],
      [500, '1'],
    ]);
    expect(seen[0]!.states).toEqual([TaskState.OPEN, TaskState.CLOSING]);
    const answer = JSON.parse(stdout);
    expect(answer.tasks).toHaveLength(1500);
    expect(answer.nextPageToken).toBe('2');
  });
});

describe('task close', () => {
  test('--wait exits with 0 when every lease has an outcome', async () => {
    let seen: CloseTaskRequest | undefined;
    const handlers: Handlers = {
      task: {
        closeTask: (request) => {
          seen = request;
          return { task: sampleTask({ state: TaskState.CLOSED }), leases: [], summary: { revoked: 1 } };
        },
      },
    };
    const { code } = await cli(
      handlers,
      'task',
      'close',
      taskId,
      '--wait',
      '--justification',
      'done',
      '--request-id',
      requestId,
    );
    expect(code).toBe(0);
    expect(seen).toMatchObject({ taskId, wait: true, justification: 'done', requestId });
  });

  test('--wait prints the answer and exits with 12 when a lease is not settled', async () => {
    const handlers: Handlers = {
      task: { closeTask: () => ({ task: sampleTask({ state: TaskState.CLOSING }), summary: { unsettled: 2 } }) },
    };
    const { code, stdout, stderr } = await cli(handlers, 'task', 'close', taskId, '--wait', '--json');
    expect(code).toBe(12);
    expect(JSON.parse(stdout).summary.unsettled).toBe(2);
    expect(JSON.parse(stderr).error).toMatchObject({ reason: 'NOT_SETTLED', exit_code: 12 });
  });
});

test('task extend sends an absolute deadline', async () => {
  let seen: ExtendTaskRequest | undefined;
  const handlers: Handlers = { task: { extendTask: (request) => ((seen = request), { task: sampleTask() }) } };
  const before = Date.now();
  const { code } = await cli(handlers, 'task', 'extend', taskId, '--ttl', '30m');
  expect(code).toBe(0);
  const deadline = timestampMs(seen!.deadline!);
  expect(deadline).toBeGreaterThanOrEqual(before + 1_800_000 - 1);
  expect(deadline).toBeLessThanOrEqual(Date.now() + 1_800_000);
  const missing = await runCli(['task', 'extend', taskId], { LEASEHOLD_TOKEN: 'x' });
  expect(missing).toMatchObject({ code: 2, stderr: expect.stringContaining('--ttl or --deadline') });
});

test('task heartbeat says when the next one is due', async () => {
  const dueTime = timestampFromMs(Date.parse('2026-01-31T18:00:00Z'));
  const handlers: Handlers = { task: { heartbeatTask: () => ({ dueTime }) } };
  const { code, stdout } = await cli(handlers, 'task', 'heartbeat', taskId);
  expect(code).toBe(0);
  expect(stdout).toContain('2026-01-31T18:00:00Z');
});

describe('task watch', () => {
  const open = { task: sampleTask(), leases: [sampleLease()], summary: { unsettled: 1 } };
  const closed = {
    task: sampleTask({ state: TaskState.CLOSED }),
    leases: [sampleLease({ state: LeaseState.SETTLED, outcome: LeaseOutcome.REVOKED })],
    summary: { revoked: 1 },
  };

  test('--json prints one document per change and ends with the task', async () => {
    const handlers: Handlers = {
      task: {
        watchTask: async function* () {
          yield open;
          yield closed;
        },
      },
    };
    const { code, stdout } = await cli(handlers, 'task', 'watch', taskId, '--json');
    expect(code).toBe(0);
    const states = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line).task.state);
    expect(states).toEqual(['TASK_STATE_OPEN', 'TASK_STATE_CLOSED']);
  });

  test('says each change once, also over a connection that is made again', async () => {
    let calls = 0;
    const handlers: Handlers = {
      task: {
        watchTask: async function* () {
          yield open;
          if (++calls < 3) throw refusal(Code.Unavailable, 'SHUTTING_DOWN', 'This replica is stopping; call again.');
          yield closed;
        },
      },
    };
    const { code, stdout } = await cli(handlers, 'task', 'watch', taskId);
    expect(code).toBe(0);
    expect(calls).toBe(3);
    const said = stdout
      .trimEnd()
      .split('\n')
      .map((line) => line.slice(10));
    expect(said).toEqual([
      'task   open      1 unsettled',
      `lease  active    ${leaseId}  warehouse:read`,
      'task   closed    1 revoked',
      `lease  revoked   ${leaseId}  warehouse:read`,
    ]);
  });

  test('exits with 12 when a lease could not be revoked', async () => {
    const handlers: Handlers = {
      task: {
        watchTask: async function* () {
          yield { task: sampleTask({ state: TaskState.CLOSE_DEGRADED }), leases: [], summary: { irrevocable: 1 } };
        },
      },
    };
    const { code, stderr } = await cli(handlers, 'task', 'watch', taskId);
    expect(code).toBe(12);
    expect(stderr).toContain('leasehold lease list --troubled');
  });

  test('ends at once when it is interrupted', async () => {
    const gone = Promise.withResolvers<void>();
    broker = await startFakeBroker({
      task: {
        watchTask: async function* (_request, context) {
          yield open;
          await new Promise<void>((resolve) => context.signal.addEventListener('abort', () => resolve()));
          gone.resolve();
        },
      },
    });
    const run = startCli(['task', 'watch', taskId], { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'x' });
    await new Promise<void>((resolve) => run.child.stdout!.once('data', () => resolve()));
    run.child.kill('SIGINT');
    const { stderr } = await run.done;
    expect(run.child.signalCode ?? run.child.exitCode).toSatisfy((end) => end === 'SIGINT' || end === 130);
    expect(stderr).toBe('');
    await gone.promise;
  });
});

describe('tasks below tasks', () => {
  const child = `tsk_${'0'.repeat(31)}2`;
  const node = (more: object) => ({ taskId, depth: 0, agent: 'lead', state: TaskState.OPEN, summary: {}, ...more });
  const tree = [
    node({}),
    node({ taskId: child, parentTaskId: taskId, depth: 1, agent: 'helper', summary: { unsettled: 1 } }),
    node({ taskId: `tsk_${'0'.repeat(31)}3`, parentTaskId: child, depth: 2, agent: 'scribe' }),
  ];

  test('tree shows each below its parent, and follows pages', async () => {
    const handlers: Handlers = {
      task: {
        listTaskTree: ({ pageToken }) =>
          pageToken === ''
            ? { nodes: tree.slice(0, 2), nextPageToken: 'next' }
            : { nodes: tree.slice(2), nextPageToken: '' },
      },
    };
    const { code, stdout } = await cli(handlers, 'task', 'tree', taskId);
    expect(code).toBe(0);
    expect(stdout).toMatch(new RegExp(`\n${taskId} +open +lead`));
    expect(stdout).toMatch(new RegExp(`\n {2}${child} +open +helper .*1 unsettled`));
    expect(stdout).toMatch(/\n {4}tsk_0+3 +open +scribe/);
    const json = await cli(handlers, 'task', 'tree', taskId, '--json');
    expect(JSON.parse(json.stdout).nodes).toHaveLength(3);
  });

  test('open --parent and list --parent --root name them', async () => {
    const seen: object[] = [];
    const handlers: Handlers = {
      task: {
        openTask: (request) => (seen.push(request), { task: sampleTask() }),
        listTasks: (request) => (seen.push(request), { tasks: [] }),
      },
    };
    expect((await cli(handlers, ...openArgs, '--parent', taskId)).code).toBe(0);
    await cli(handlers, 'task', 'list', '--parent', taskId, '--root', child);
    expect(seen).toMatchObject([{ parentTaskId: taskId }, { parentTaskId: taskId, rootTaskId: child }]);
  });

  test('close shows what became of everything below', async () => {
    const closed = tree.map((one) => ({ ...one, state: TaskState.CLOSED }));
    const handlers: Handlers = {
      task: {
        closeTask: () => ({ task: sampleTask({ state: TaskState.CLOSED }), tree: closed, tasks: 3, unsettledTasks: 0 }),
      },
    };
    const { stdout } = await cli(handlers, 'task', 'close', taskId, '--wait');
    expect(stdout).toMatch(/3 tasks, 0 of them not settled/);
    expect(stdout).toMatch(/\n {4}tsk_0+3 +closed +scribe/);
  });
});
