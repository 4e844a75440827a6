import type { createClient } from '@connectrpc/connect';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import type { Lease } from '../../src/gen/leasehold/v1/common_pb.js';
import type { Credential } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import {
  SettlementService,
  type Finding,
  type ReconcileResponse,
  type TargetResult,
} from '../../src/gen/leasehold/v1/settlement_service_pb.js';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import { brokerRows, callers, editConfig, openTask, warehouseRead, type Row } from '../faults/support.ts';

export interface Site {
  estate: TestEstate;
  /** Between broker and warehouse. Agents reach the warehouse directly. */
  network: TestProxy;
  log: readonly string[];
  operator: ReturnType<typeof createClient<typeof SettlementService>>;
  admin: ReturnType<typeof createClient<typeof AdminService>>;
  /** A task with one warehouse login. */
  issue(): Promise<{ taskId: string; credential: Credential; lease: Lease }>;
  stop(): Promise<void>;
}

export async function openSite(label: string, overrides: Record<string, object> = {}): Promise<Site> {
  const estate = await createEstate(label, { tasks: { settleBound: '2s' }, ...overrides });
  const network = await startProxy(estate.target.host, estate.target.port);
  await editConfig(estate, (config) => {
    const warehouse = config['targets']!['warehouse']!;
    config['targets'] = {
      warehouse: { ...warehouse, port: network.port, connectPort: estate.target.port, issueTimeout: '3s' },
    };
  });
  const broker = await startInProcess(estate);
  return {
    estate,
    network,
    log: broker.log,
    operator: estate.client(SettlementService, 'operator'),
    admin: estate.client(AdminService, 'operator'),
    issue: async () => {
      const taskId = await openTask(estate);
      const { credential } = await callers(estate).agent.issueCredential({ taskId, ...warehouseRead });
      return { taskId, credential: credential!, lease: credential!.lease! };
    },
    stop: async () => {
      await network.mode('pass');
      await broker.stop(500);
      await network.close();
      await estate.remove();
    },
  };
}

export async function leaseRow(site: Pick<Site, 'estate'>, leaseId: string): Promise<Row> {
  return (await brokerRows(site.estate, 'SELECT * FROM leases WHERE lease_id = $1', [leaseId]))[0]!;
}

/** As if the credential had run out this long ago. */
export async function longExpired(site: Pick<Site, 'estate'>, leaseId: string, hours: number): Promise<void> {
  await brokerRows(
    site.estate,
    `UPDATE leases SET expires_at = now() - $2 * interval '1 hour', settle_at = now() WHERE lease_id = $1`,
    [leaseId, hours],
  );
}

export async function eventsOf(site: Pick<Site, 'estate'>, leaseId: string, kind: string): Promise<Row[]> {
  return await brokerRows(
    site.estate,
    'SELECT actor, task_id, detail FROM audit_events WHERE lease_id = $1 AND kind = $2 ORDER BY event_id',
    [leaseId, kind],
  );
}

/** What the target itself says. */
export async function roleIsThere(site: Pick<Site, 'estate'>, role: string): Promise<boolean> {
  return await asSuperuser(site.estate.targetUrl, async (client) => {
    const { rowCount } = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [role]);
    return rowCount !== 0;
  });
}

export interface Comparison {
  findings: Finding[];
  /** By target. */
  results: Record<string, TargetResult>;
}

export async function reconcile(
  operator: Site['operator'],
  request: { target?: string; settle?: boolean } = {},
): Promise<Comparison> {
  const findings: Finding[] = [];
  const results: Record<string, TargetResult> = {};
  for await (const { target, step } of operator.reconcile(request) as AsyncIterable<ReconcileResponse>) {
    if (step.case === 'finding') findings.push(step.value);
    if (step.case === 'result') results[target] = step.value;
  }
  return { findings, results };
}
