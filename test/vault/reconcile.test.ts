import { afterAll, beforeAll, expect, test } from 'vitest';
import { FindingKind, SettlementService } from '../../src/gen/leasehold/v1/settlement_service_pb.js';
import { brokerRows, callers, eventually, leasesOf, loginOf, ordersSeenBy } from '../faults/support.ts';
import { reconcile } from '../settle/support.ts';
import { startInProcess } from '../support/broker.ts';
import { describeVault } from '../support/vault.ts';
import { createVaultEstate, ledger, openVaultTask, settings, wrapped, type VaultEstate } from './estate.ts';

describeVault('leases and a real Vault are compared', () => {
  let at: VaultEstate;
  let broker: Awaited<ReturnType<typeof startInProcess>>;
  let operator: ReturnType<typeof at.estate.client<typeof SettlementService>>;
  beforeAll(async () => {
    at = await createVaultEstate('vcompare', { storage: 'raft' });
    await at.vault.root('POST', 'kv/data/app/settings', { data: { colour: 'green' } });
    broker = await startInProcess(at.estate);
    operator = at.estate.client(SettlementService, 'operator');
  });
  afterAll(async () => {
    await broker?.stop(500);
    await at?.remove();
  });

  const issue = async (taskId: string, access: { tool: string; tier: number }) =>
    (await callers(at.estate).agent.issueCredential({ taskId, ...access })).credential!;
  /** Long enough ago to be judged. */
  const aged = async (taskId: string) =>
    await brokerRows(at.estate, `UPDATE leases SET issued_at = now() - interval '5 minutes' WHERE task_id = $1`, [
      taskId,
    ]);
  const vaultSays = async (accessor: string) =>
    await at.vault.root('POST', 'auth/token/lookup-accessor', { accessor }).then(
      () => 'there',
      () => 'gone',
    );

  test('what Vault keeps is there, and what it keeps nothing of is not called missing', async () => {
    const taskId = await openVaultTask(at.estate);
    const credential = await issue(taskId, ledger);
    for (const access of [settings, wrapped]) await issue(taskId, access);
    await aged(taskId);
    for (const target of ['vault:main', 'main', '']) {
      const { findings, results } = await reconcile(operator, { target, settle: true });
      expect(findings).toEqual([]);
      expect(results['vault:main']).toMatchObject({ strays: 0n, missing: 0n, error: '' });
      expect(results['vault:main']!.held).toBeGreaterThan(0n);
    }
    expect(await ordersSeenBy(loginOf(credential))).toBe(3);
  });

  test('a lease that was revoked underneath is missing', async () => {
    const taskId = await openVaultTask(at.estate);
    await issue(taskId, ledger);
    await aged(taskId);
    const [row] = await leasesOf(at.estate, taskId);
    const vaultLease = (row!['handle'] as string).split('=')[1]!;
    await at.vault.root('POST', 'sys/leases/revoke', { lease_id: vaultLease, sync: true });
    const { findings } = await reconcile(operator, { settle: true });
    expect(findings).toMatchObject([{ kind: FindingKind.MISSING, taskId, leaseId: row!['lease_id'], settled: false }]);
  });

  test('after a restore of Vault, the token of a settled task is back: a stray, and revoked with all that hangs on it', async () => {
    const taskId = await openVaultTask(at.estate);
    await issue(taskId, ledger);
    const [row] = await leasesOf(at.estate, taskId);
    const accessor = (row!['handle'] as string).split('/')[1]!.split('=')[0]!;
    const snapshot = await at.vault.snapshot();
    await callers(at.estate).orchestrator.closeTask({ taskId });
    await eventually(async () => {
      const [task] = await brokerRows(at.estate, 'SELECT settled_at FROM tasks WHERE task_id = $1', [taskId]);
      expect(task!['settled_at']).not.toBeNull();
    }, 45_000);
    expect(await vaultSays(accessor)).toBe('gone');
    await at.vault.restore(snapshot);
    expect(await vaultSays(accessor)).toBe('there');
    const looked = await reconcile(operator, { target: 'vault:main' });
    expect(looked.findings.filter((each) => each.taskId === taskId)).toMatchObject([
      { kind: FindingKind.STRAY_SETTLED, handle: `vault:main/${accessor}`, settled: false },
    ]);
    const settled = await reconcile(operator, { target: 'vault:main', settle: true });
    expect(settled.findings.filter((each) => each.taskId === taskId)).toMatchObject([{ settled: true, error: '' }]);
    expect(await vaultSays(accessor)).toBe('gone');
  });
});
