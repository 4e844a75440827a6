import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';

export function toolList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List the registered tools and their tiers',
    examples: [
      ['leasehold tool list', 'what a task can ask for'],
      ['leasehold tool list --json | jq -r ".tools[].name"', 'only the names'],
    ],
  });
  command.action(async (options: RemoteOptions) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.AdminService.method.listTools, {});
    if (options.json === true) {
      remote.jsonLine(remote.ListToolsResponseSchema, answer);
      return;
    }
    const rows = answer.tools.flatMap((tool) =>
      tool.tiers.map((tier) => [
        tool.name,
        remote.tierName(tier.tier),
        tier.provider,
        remote.revocationName(tier.revocationKind),
        tier.defaultTtl === undefined ? '-' : remote.span(remote.durationMs(tier.defaultTtl)),
        tier.maxTtl === undefined ? '-' : remote.span(remote.durationMs(tier.maxTtl)),
        tool.owner,
        tool.resource,
      ]),
    );
    if (rows.length === 0) remote.line('no tools');
    else remote.table(['TOOL', 'TIER', 'PROVIDER', 'REVOCATION', 'TTL', 'MAX TTL', 'OWNER', 'RESOURCE'], rows);
  });
}
