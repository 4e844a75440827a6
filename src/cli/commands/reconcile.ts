import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import type { ReconcileResponse } from '../../gen/leasehold/v1/settlement_service_pb.js';
import { CliError } from '../cli-error.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { counter } from '../progress.ts';

interface Options extends RemoteOptions {
  target?: string;
  settle?: boolean;
  requestId?: string;
}

export function reconcile(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'reconcile',
    summary: 'Compare leases with what their targets really hold',
    description:
      'Asks the broker to list what its targets hold and to compare it with the leases. Reports strays (a credential of this ' +
      'installation that no open lease owns) and what is missing (an active lease whose credential the target does not ' +
      'know): after a database or a target was restored from a snapshot, or when somebody helped by hand. With --settle it ' +
      'revokes the strays, each audited. What is younger than ten minutes, or of another installation, is left alone. ' +
      'Exits with 13 when strays or missing credentials are left, with 7 when a target could not be compared.',
    examples: [
      ['leasehold reconcile', 'only look'],
      ['leasehold reconcile --target warehouse --settle', 'after the warehouse was restored'],
      ['leasehold reconcile --json | jq .finding', 'a line for each step'],
    ],
  });
  command.option('--target <name>', 'only this target of leasehold.yaml').option('--settle', 'revoke the strays');
  withRequestId(command).action(async (options: Options) => {
    const remote = await import('../remote.ts');
    const stream = remote
      .connect(options)
      .stream(
        remote.SettlementService.method.reconcile,
        { requestId: options.requestId ?? randomUUID(), target: options.target ?? '', settle: options.settle ?? false },
        false,
      );
    const shown = counter();
    const totals = { targets: 0, left: 0, missing: 0, failed: [] as string[] };
    try {
      for await (const answer of stream) {
        if (options.json === true) remote.jsonLine(remote.ReconcileResponseSchema, answer);
        const { step } = answer;
        if (step.case === 'progress') {
          shown.show(`${answer.target}: ${step.value.held} at the target, ${step.value.leases} leases looked at`);
        } else if (step.case === 'finding' && options.json !== true) {
          shown.end();
          remote.showFinding(answer.target, step.value);
        } else if (step.case === 'result') {
          shown.end();
          add(totals, answer);
          if (options.json !== true) remote.showResult(answer.provider, answer.target, step.value);
        }
      }
    } finally {
      shown.end();
    }
    if (totals.targets === 0 && options.json !== true) remote.line('no target whose contents can be listed');
    finish(totals);
  });
}

interface Totals {
  targets: number;
  left: number;
  missing: number;
  failed: string[];
}

function add(totals: Totals, { target, step }: ReconcileResponse): void {
  if (step.case !== 'result') return;
  totals.targets += 1;
  totals.left += Number(step.value.strays - step.value.settled);
  totals.missing += Number(step.value.missing);
  if (step.value.error !== '') totals.failed.push(target);
}

function finish({ left, missing, failed }: Totals): void {
  if (left > 0 || missing > 0) {
    const also = failed.length === 0 ? '' : `; not compared: ${failed.join(', ')}`;
    throw new CliError(
      'differs',
      `${left} stray and ${missing} missing credentials are left${also}; revoke strays with --settle`,
      { reason: 'TARGETS_DIFFER' },
    );
  }
  if (failed.length > 0) {
    throw new CliError('unavailable', `not compared to the end: ${failed.join(', ')}; see the reason and try again`, {
      reason: 'TARGET_NOT_COMPARED',
    });
  }
}
