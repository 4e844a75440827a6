import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { Code } from '@connectrpc/connect';
import { afterEach, describe, expect, test } from 'vitest';
import { LeaseOutcome, LeaseState } from '../../src/gen/leasehold/v1/common_pb.js';
import {
  FindingKind,
  type AbandonLeaseRequest,
  type ReconcileRequest,
  type RetrySettlementRequest,
} from '../../src/gen/leasehold/v1/settlement_service_pb.js';
import { refusal, startFakeBroker, type FakeBroker, type Handlers } from './fake-broker.ts';
import { runCli, type CliResult } from './run-cli.ts';
import { leaseId, requestId, sampleLease, taskId } from './samples.ts';

let broker: FakeBroker | undefined;
afterEach(async () => {
  await broker?.stop();
  broker = undefined;
});

async function cli(settlement: Handlers['settlement'], ...args: string[]): Promise<CliResult> {
  broker = await startFakeBroker({ settlement: settlement! });
  return await runCli(args, { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'caller.token' });
}

const irrevocable = () =>
  sampleLease({
    state: LeaseState.SETTLED,
    outcome: LeaseOutcome.IRREVOCABLE,
    settleAttempts: 41,
    settleError: 'the target refuses',
    settlement: {
      cause: 'closed',
      target: 'warehouse',
      handle: 'warehouse/lh_1',
      nextAttemptTime: timestampFromMs(Date.now() + 1_800_000),
      advice: `mend it, then: leasehold lease settle ${leaseId} --retry`,
    },
  });

test('lease get shows where the settlement stands and what to do next', async () => {
  const { code, stdout } = await cli({ getLease: () => ({ lease: irrevocable() }) }, 'lease', 'get', leaseId);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^state +irrevocable \(closed\)$/m);
  expect(stdout).toMatch(/^handle +warehouse\/lh_1$/m);
  expect(stdout).toMatch(/^last error +the target refuses$/m);
  expect(stdout).toMatch(/^to do +mend it/m);
});

describe('lease settle', () => {
  test('only lists without --retry, and goes through all pages', async () => {
    const seen: RetrySettlementRequest[] = [];
    const answer = (request: RetrySettlementRequest) => {
      seen.push(request);
      return { leases: [irrevocable()], nextPageToken: request.pageToken === '' ? 'next' : '' };
    };
    const { code, stdout } = await cli({ retrySettlement: answer }, 'lease', 'settle', '--troubled');
    expect(code).toBe(0);
    expect(seen).toMatchObject([
      { troubled: true, dryRun: true, pageToken: '' },
      { troubled: true, dryRun: true, pageToken: 'next' },
    ]);
    expect(stdout).toContain('2 leases would be tried again: say --retry');
  });

  test('with --retry makes the named ones due', async () => {
    let seen: RetrySettlementRequest | undefined;
    const answer = (request: RetrySettlementRequest) => ((seen = request), { leases: [irrevocable()] });
    const args = ['lease', 'settle', leaseId, '--retry', '--request-id', requestId];
    const { code, stdout } = await cli({ retrySettlement: answer }, ...args);
    expect(code).toBe(0);
    expect(seen).toMatchObject({ leaseIds: [leaseId], dryRun: false, requestId });
    expect(stdout).toContain('1 lease due now');
  });

  test('wants exactly one of leases, --task and --troubled', async () => {
    expect(await cli({}, 'lease', 'settle')).toMatchObject({ code: 2 });
    await broker!.stop();
    expect(await cli({}, 'lease', 'settle', '--task', taskId, '--troubled')).toMatchObject({ code: 2 });
  });
});

describe('lease abandon', () => {
  test('sends the reason and shows who abandoned it', async () => {
    let seen: AbandonLeaseRequest | undefined;
    const lease = sampleLease({
      state: LeaseState.SETTLED,
      outcome: LeaseOutcome.IRREVOCABLE,
      settlement: { abandonedBy: 'spiffe://example.org/ann', abandonReason: 'CHG-88: gone' },
    });
    const args = ['lease', 'abandon', leaseId, '--reason', 'CHG-88: the cluster is gone'];
    const { code, stdout } = await cli({ abandonLease: (request) => ((seen = request), { lease }) }, ...args);
    expect(code).toBe(0);
    expect(seen).toMatchObject({ leaseId, reason: 'CHG-88: the cluster is gone' });
    expect(stdout).toMatch(/^abandoned by +spiffe:\/\/example.org\/ann$/m);
  });

  test('says when the broker could settle it after all, and passes a refusal on', async () => {
    const lease = sampleLease({ state: LeaseState.SETTLED, outcome: LeaseOutcome.EXPIRED, settlement: {} });
    const args = ['lease', 'abandon', leaseId, '--reason', 'CHG-88: the cluster is gone'];
    expect((await cli({ abandonLease: () => ({ lease }) }, ...args)).stdout).toContain('not abandoned');
    await broker!.stop();
    const refused = () => {
      throw refusal(Code.FailedPrecondition, 'ABANDON_REFUSED', 'it lives until tomorrow');
    };
    const { code, stderr } = await cli({ abandonLease: refused }, ...args);
    expect(code).toBe(6);
    expect(stderr).toContain('it lives until tomorrow (ABANDON_REFUSED)');
  });
});

describe('reconcile', () => {
  const at = { provider: 'postgres', target: 'warehouse' };
  const progress = { ...at, step: { case: 'progress' as const, value: { held: 3n, leases: 2n } } };
  const finding = (more: object) => ({
    ...at,
    step: {
      case: 'finding' as const,
      value: { kind: FindingKind.STRAY_UNKNOWN, handle: 'warehouse/lh_2', leaseId, ...more },
    },
  });
  const result = (more: object) => ({
    ...at,
    step: { case: 'result' as const, value: { held: 3n, leases: 2n, ...more } },
  });
  const stream = (...steps: object[]) =>
    async function* () {
      for (const step of steps) yield await Promise.resolve(step);
    };

  test('exits with 0 when nothing differs, and prints no progress into a pipe', async () => {
    const { code, stdout, stderr } = await cli({ reconcile: stream(progress, result({})) }, 'reconcile');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toBe('warehouse (postgres)  3 held, 2 active leases: nothing differs\n');
  });

  test('exits with 13 when a stray is left, and with 0 when all are revoked', async () => {
    const left = await cli({ reconcile: stream(finding({}), result({ strays: 1n })) }, 'reconcile');
    expect(left.code).toBe(13);
    expect(left.stdout).toContain('warehouse  warehouse/lh_2  stray (its lease is not known here)\n');
    expect(left.stderr).toContain('--settle');
    await broker!.stop();
    let seen: ReconcileRequest | undefined;
    const answers = stream(finding({ settled: true }), result({ strays: 1n, settled: 1n }));
    const settled = await cli(
      { reconcile: (request) => ((seen = request), answers()) },
      ...['reconcile', '--target', 'warehouse', '--settle'],
    );
    expect(settled.code).toBe(0);
    expect(seen).toMatchObject({ target: 'warehouse', settle: true });
    expect(settled.stdout).toContain(', revoked\n');
  });

  test('exits with 13 when something is missing, with 7 when a target could not be compared', async () => {
    expect(await cli({ reconcile: stream(result({ missing: 2n })) }, 'reconcile')).toMatchObject({ code: 13 });
    await broker!.stop();
    const failed = await cli({ reconcile: stream(result({ error: 'it is down' })) }, 'reconcile');
    expect(failed.code).toBe(7);
    expect(failed.stdout).toContain('it is down');
  });

  test('--json prints every step as a line', async () => {
    const { stdout } = await cli(
      { reconcile: stream(progress, finding({}), result({ strays: 1n, settled: 1n })) },
      ...['reconcile', '--json'],
    );
    const lines = stdout
      .trim()
      .split('\n')
      .map((each) => JSON.parse(each) as Record<string, unknown>);
    expect(lines).toHaveLength(3);
    expect(lines[1]).toMatchObject({ target: 'warehouse', finding: { kind: 'FINDING_KIND_STRAY_UNKNOWN', leaseId } });
  });
});
