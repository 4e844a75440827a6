import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  task?: string;
  troubled?: boolean;
  retry?: boolean;
  limit: number;
  requestId?: string;
}

export function leaseSettle(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'settle',
    summary: 'Try again to settle leases that could not be revoked',
    description:
      'Lists the leases in trouble among those that are named: the broker failed to revoke them, or called them ' +
      'irrevocable. With --retry they are due now, with their attempts reset, and audited. One that is named by its ' +
      'identifier is taken up again even when it was abandoned. The broker tries by itself in any case; this is for when ' +
      'the cause has just been mended.',
    examples: [
      ['leasehold lease settle --troubled', 'what would be tried again'],
      ['leasehold lease settle --troubled --retry', 'the target is back: now'],
      ['leasehold lease settle lse_0198f1c2a4b57d3e8f60718293a4b5c6 --retry', 'its login was dropped by hand'],
    ],
  });
  command
    .argument('[lease...]', 'lease identifiers', (text: string, previous: string[] | undefined) => [
      ...(previous ?? []),
      identifier('lse')(text),
    ])
    .option('--task <task>', 'those of this task', identifier('tsk'))
    .option('--troubled', 'all of them')
    .option('--retry', 'do it')
    .option('--limit <number>', 'most leases to take', count(100_000), 10_000);
  withRequestId(command).action(async (leaseIds: string[] | undefined, options: Options) => {
    const named = leaseIds ?? [];
    const given = [named.length > 0, options.task !== undefined, options.troubled === true].filter(Boolean).length;
    if (given !== 1) {
      throw new CliError('usage', 'name leases, or give --task TASK, or --troubled: one of the three', {
        reason: 'USAGE',
      });
    }
    const remote = await import('../remote.ts');
    const client = remote.connect(options);
    const requestId = options.requestId ?? randomUUID();
    const { items: leases, nextPageToken } = await pages({ limit: options.limit }, async (page) => {
      const answer = await client.call(remote.SettlementService.method.retrySettlement, {
        ...page,
        pageSize: Math.min(page.pageSize, 500),
        requestId,
        leaseIds: named,
        taskId: options.task ?? '',
        troubled: options.troubled ?? false,
        dryRun: options.retry !== true,
      });
      return { items: answer.leases, nextPageToken: answer.nextPageToken };
    });
    if (options.json === true) {
      const schema = remote.RetrySettlementResponseSchema;
      remote.jsonLine(schema, remote.create(schema, { leases, nextPageToken }));
      return;
    }
    if (leases.length === 0) {
      remote.line('no leases in trouble');
      return;
    }
    remote.showLeases(leases, true);
    remote.line();
    const many = leases.length === 1 ? '1 lease' : `${leases.length} leases`;
    if (options.retry === true) remote.line(`${many} due now; look at the outcome with leasehold lease get`);
    else remote.line(`${many} would be tried again: say --retry`);
    if (nextPageToken !== '') remote.line('there are more: raise --limit, or repeat');
  });
}
