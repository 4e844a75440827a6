import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import { afterEach, expect, test } from 'vitest';
import type { ListLeasesRequest } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { LeaseState, RevocationKind, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { startFakeBroker, type FakeBroker, type Handlers } from './fake-broker.ts';
import { runCli, type CliResult } from './run-cli.ts';
import { leaseId, sampleLease, taskId } from './samples.ts';

let broker: FakeBroker | undefined;
afterEach(async () => {
  await broker?.stop();
  broker = undefined;
});

async function cli(handlers: Handlers, ...args: string[]): Promise<CliResult> {
  broker = await startFakeBroker(handlers);
  return await runCli(args, { LEASEHOLD_SERVER: broker.url, LEASEHOLD_TOKEN: 'caller.token' });
}

test('lease list sends its filters and shows the task of each lease', async () => {
  let seen: ListLeasesRequest | undefined;
  const handlers: Handlers = {
    admin: { listLeases: (request) => ((seen = request), { leases: [sampleLease()], nextPageToken: 'next' }) },
  };
  const args = ['lease', 'list', '--task', taskId, '--state', 'active', '--troubled', '--limit', '1'];
  const { code, stdout } = await cli(handlers, ...args);
  expect(code).toBe(0);
  expect(seen).toMatchObject({ taskId, states: [LeaseState.ACTIVE], troubled: true, pageSize: 1 });
  expect(stdout).toMatch(new RegExp(`^${leaseId} +${taskId} +warehouse +read`, 'm'));
  expect(stdout).toMatch(/^more: --page-token next$/m);
});

test('tool list shows a line per tier', async () => {
  const tiers = [Tier.READ, Tier.WRITE].map((tier) => ({
    tier,
    provider: 'postgres',
    revocationKind: RevocationKind.IMMEDIATE,
    defaultTtl: durationFromMs(300_000),
    maxTtl: durationFromMs(3_600_000),
  }));
  const tools = [{ name: 'warehouse', owner: 'data', resource: 'urn:warehouse', tiers }];
  const { stdout } = await cli({ admin: { listTools: () => ({ tools }) } }, 'tool', 'list');
  expect(stdout).toMatch(/^warehouse +read +postgres +immediate +5m +1h +data +urn:warehouse$/m);
  expect(stdout).toMatch(/^warehouse +write /m);
});

test('audit list shows who did what, and --json every particular', async () => {
  const events = [
    {
      eventId: '1',
      kind: 'lease.issued',
      eventTime: timestampFromMs(Date.UTC(2030, 0, 2, 3, 4, 5)),
      actor: 'spiffe://example.org/agent',
      taskId,
      leaseId,
      detail: { tool: 'warehouse', ttl_s: 300 },
    },
  ];
  const handlers: Handlers = { audit: { listAuditEvents: () => ({ events }) } };
  const human = await cli(handlers, 'audit', 'list', taskId);
  expect(human.stdout).toContain(
    `2030-01-02T03:04:05Z  lease.issued  spiffe://example.org/agent  ${leaseId}  tool=warehouse ttl_s=300\n`,
  );
  await broker!.stop();
  const json = await cli(handlers, 'audit', 'list', taskId, '--json');
  expect(JSON.parse(json.stdout).events[0].detail).toEqual({ tool: 'warehouse', ttl_s: 300 });
});

test('status exits with 0 when the broker can issue, and with 7 and the parts at fault when it cannot', async () => {
  const components = [
    { name: 'storage', ready: true, detail: 'postgres 18' },
    { name: 'policy', ready: false, detail: 'no revision' },
  ];
  const good = await cli({ admin: { getStatus: () => ({ ready: true, version: '1.2.3', openLeases: 4n }) } }, 'status');
  expect(good).toMatchObject({ code: 0, stderr: '' });
  expect(good.stdout).toMatch(/^open leases +4$/m);
  await broker!.stop();
  const bad = await cli({ admin: { getStatus: () => ({ ready: false, components }) } }, 'status');
  expect(bad.code).toBe(7);
  expect(bad.stdout).toMatch(/^policy +no +no revision$/m);
  expect(bad.stderr).toContain('cannot issue: policy');
});
