import type { Command, Option } from 'commander';

/** One level of the command tree, as the completion scripts need it. */
interface Node {
  /** Words after `leasehold`, joined by a space; empty for the program itself. */
  path: string;
  commands: { name: string; summary: string }[];
  options: { flags: string[]; summary: string; choices: readonly string[]; takesFile: boolean; takesValue: boolean }[];
}

export type Shell = 'bash' | 'zsh' | 'fish';

/** A completion script made from the commands themselves: it cannot name what does not exist. */
export function completionScript(shell: Shell, program: Command): string {
  const nodes = walk(program, '');
  return { bash, zsh, fish }[shell](nodes);
}

function walk(command: Command, path: string): Node[] {
  const children = command.commands.filter((child) => !(child as Command & { _hidden?: boolean })._hidden);
  const options: readonly Option[] = command.createHelp().visibleOptions(command);
  const node: Node = {
    path,
    commands: children.map((child) => ({ name: child.name(), summary: child.summary() })),
    options: options.map((option) => ({
      flags: [option.short, option.long].filter((flag) => flag !== undefined && flag !== null),
      summary: option.description,
      choices: option.argChoices ?? [],
      takesFile: /<file>/.test(option.flags),
      takesValue: option.required || option.optional,
    })),
  };
  return [node, ...children.flatMap((child) => walk(child, `${path} ${child.name()}`.trim()))];
}

const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
const flagsOf = (node: Node) => node.options.flatMap((option) => option.flags);

/** bash and zsh share the way in which the words typed so far are turned into a path of the tree. */
function pathCases(nodes: Node[]): string {
  return nodes
    .filter((node) => node.commands.length > 0)
    .map((node) => `      ${quoted(node.path)}) names=${quoted(node.commands.map(({ name }) => name).join(' '))} ;;`)
    .join('\n');
}

function bash(nodes: Node[]): string {
  const words = nodes.map((node) => {
    const all = [...node.commands.map(({ name }) => name), ...flagsOf(node)];
    return `    ${quoted(node.path)}) words=${quoted(all.join(' '))} ;;`;
  });
  const values = new Map<string, string>();
  const files = new Set<string>();
  for (const option of nodes.flatMap((node) => node.options)) {
    for (const flag of option.flags) {
      if (option.takesFile) files.add(flag);
    }
  }
  const choices = nodes.flatMap((node) =>
    node.options
      .filter((option) => option.choices.length > 0)
      .flatMap((option) =>
        option.flags.map((flag) => [`${node.path} ${flag}`.trim(), option.choices.join(' ')] as const),
      ),
  );
  for (const [key, value] of choices) values.set(key, value);
  const valueCases = [...values].map(([key, value]) => `    ${quoted(key)}) words=${quoted(value)} ;;`);
  return `# bash completion of leasehold. To use it: source <(leasehold completion bash)
_leasehold() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}" path="" names="" words="" word i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="\${COMP_WORDS[i]}"
    names=""
    case "$path" in
${pathCases(nodes)}
    esac
    case " $names " in *" $word "*) path="\${path:+$path }$word" ;; esac
  done
  case "$previous" in
    ${[...files].join('|')}) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case "$path $previous" in
${valueCases.join('\n')}
  esac
  if [ -z "$words" ]; then
    case "$path" in
${words.join('\n')}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _leasehold leasehold
`;
}

function zsh(nodes: Node[]): string {
  const described = (name: string, summary: string) => quoted(`${name.replaceAll(':', '\\:')}:${summary}`);
  const cases = nodes.map((node) => {
    const commands = node.commands.map(({ name, summary }) => described(name, summary));
    const options = node.options.flatMap((option) => option.flags.map((flag) => described(flag, option.summary)));
    return `    ${quoted(node.path)})\n      commands=(${commands.join(' ')})\n      options=(${options.join(' ')}) ;;`;
  });
  const files = [
    ...new Set(
      nodes.flatMap((node) => node.options.filter((option) => option.takesFile).flatMap(({ flags }) => flags)),
    ),
  ];
  return `#compdef leasehold
# zsh completion of leasehold. To use it: source <(leasehold completion zsh), after compinit
_leasehold() {
  local node="" word names
  local -a commands options
  for word in "\${(@)words[2,CURRENT-1]}"; do
    names=""
    case "$node" in
${pathCases(nodes)}
    esac
    [[ " $names " == *" $word "* ]] && node="\${node:+$node }$word"
  done
  case "\${words[CURRENT-1]}" in
    ${files.join('|')}) _files; return ;;
  esac
  case "$node" in
${cases.join('\n')}
  esac
  (( \${#commands} )) && _describe -t commands command commands
  [[ "\${words[CURRENT]}" == -* || \${#commands} -eq 0 ]] && _describe -t options option options
}
compdef _leasehold leasehold
`;
}

function fish(nodes: Node[]): string {
  const lines = nodes.flatMap((node) => {
    const here = `'__leasehold_at ${node.path}'`;
    return [
      ...node.commands.map(
        ({ name, summary }) => `complete -c leasehold -f -n ${here} -a ${name} -d ${quoted(summary)}`,
      ),
      ...node.options.map((option) => {
        const flags = option.flags.map((flag) =>
          flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`,
        );
        const value = option.takesFile
          ? ' -r -F'
          : option.choices.length > 0
            ? ` -x -a ${quoted(option.choices.join(' '))}`
            : option.takesValue
              ? ' -x'
              : ' -f';
        return `complete -c leasehold -n ${here} ${flags.join(' ')}${value} -d ${quoted(option.summary)}`;
      }),
    ];
  });
  const groups = nodes.filter((node) => node.commands.length > 0);
  const cases = groups.map(
    (node) =>
      `            case ${quoted(node.path)}\n                set names ${node.commands.map(({ name }) => name).join(' ')}`,
  );
  return `# fish completion of leasehold. To use it: leasehold completion fish | source
function __leasehold_at
    set -l node
    for word in (commandline -opc)[2..-1]
        set -l names
        switch "$node"
${cases.join('\n')}
        end
        contains -- $word $names; and set node (string trim -- "$node $word")
    end
    test "$node" = "$argv"
end
${lines.join('\n')}
`;
}
