import { Option, type Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  task?: string;
  state?: ('pending' | 'active' | 'settling' | 'settled')[];
  troubled?: boolean;
  abandoned?: boolean;
  limit: number;
  pageToken?: string;
}

export function leaseList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List leases, newest first',
    examples: [
      ['leasehold lease list --state active', 'every live credential'],
      ['leasehold lease list --troubled', 'those whose settlement failed: an operator should look'],
    ],
  });
  command
    .option('--task <task>', 'only leases of this task', identifier('tsk'))
    .addOption(
      new Option('--state <state...>', 'only leases in one of these states').choices([
        'pending',
        'active',
        'settling',
        'settled',
      ]),
    )
    .option(
      '--troubled',
      'only those that could not be settled so far, or cannot be revoked, and what to do about each',
    )
    .option('--abandoned', 'only those that an operator has declared finished by hand')
    .option('--limit <number>', 'most leases to list', count(10_000), 50)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const states = {
        pending: remote.LeaseState.PENDING,
        active: remote.LeaseState.ACTIVE,
        settling: remote.LeaseState.SETTLING,
        settled: remote.LeaseState.SETTLED,
      };
      const { items: leases, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.AdminService.method.listLeases, {
          ...page,
          taskId: options.task ?? '',
          states: (options.state ?? []).map((state) => states[state]),
          troubled: options.troubled ?? false,
          abandoned: options.abandoned ?? false,
        });
        return { items: answer.leases, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        const schema = remote.ListLeasesResponseSchema;
        remote.jsonLine(schema, remote.create(schema, { leases, nextPageToken }));
        return;
      }
      remote.showLeases(leases, true);
      if (options.troubled === true) remote.showAdvice(leases);
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}
