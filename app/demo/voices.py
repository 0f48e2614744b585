"""What people in the demo are called and what they say, in both languages. Chosen by a seeded generator, so that a show can be replayed."""

FAMILY_NAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡林郭何高罗"
GIVEN_NAMES = (
    *("秀英", "桂兰", "志强", "建国", "小雨", "晓燕", "丽华", "国栋", "雪梅", "海涛"),
    *("文静", "思远", "子轩", "雨桐", "春生", "月娥", "阿福", "小满", "谷雨", "立夏"),
)
WESTERN_NAMES = (
    *("Amy", "Ben", "Clara", "Daniel", "Elena", "Farid", "Grace", "Hiro", "Ines", "Jonas"),
    *("Kavya", "Leo", "Mina", "Noah", "Olga", "Pedro", "Quinn", "Rosa", "Sami", "Tara"),
)

GREETINGS = (
    "主播好！",
    "第一次来，支持助农！",
    "来了来了",
    "晚上好，从江西来报到",
    "Hello from Singapore!",
    "Hi! First time here",
    "Good evening, the yard looks beautiful",
    "妈妈让我来买茶",
    "网络有点卡，能听清",
    "Is this really from the village?",
)
ABOUT = {
    "tea": (
        "是今年的新茶吗？",
        "想看看干茶的样子",
        "What water temperature do you use?",
        "泡几分钟最好？",
        "Loved last year's tin",
        "能开发票吗？",
        "有小罐装吗？",
    ),
    "orange": ("甜不甜呀？", "坏果包赔吗？", "How many in a box?", "上次买的特别甜，回购", "几天能到广州？", "Do you ship to Hainan?"),
    "honey": ("为什么是白色的？", "Does it crystallise?", "老人可以喝吗？", "等秒杀！", "手速准备好了", "Ready, set..."),
    "rice": ("是稻花香二号吗？", "磨了多久了？", "What is the milling date?", "家里就剩半袋了，刚好", "煮粥香不香"),
    "mushroom": ("泡发要多久？", "没有硫熏吧？", "Perfect for hot pot", "木耳炒蛋走起"),
    "eggs": ("路上会碎吗？", "我家孩子就认这个", "Are the hens really outdoors?", "蛋黄颜色好看"),
}
MOOD = (
    "👏👏👏",
    "支持！",
    "666",
    "好看",
    "Great energy today",
    "主播喝口水",
    "已下单",
    "Ordered!",
    "助农助农",
    "已经推荐给同事了",
    "谢谢主播",
    "So calm to watch",
)
HURRY = ("抢到了！！", "没抢到…还有吗？", "手慢了", "Got one!", "Gone already?!", "再加点库存吧", "我点了两次会不会买两份？")
THANKS = ("谢谢主播，下次见", "晚安！", "See you next week", "等发货啦", "Thank you, village!")
ANSWERS = {
    "tea": ("是的，四月二号采的，罐底有批次号。", "80–85 °C, three minutes. Sister shows you in a moment."),
    "orange": ("坏果包赔，拍照发给客服就行。", "About 22 oranges a box, picked the day you order."),
    "honey": ("椴树蜜低温会结晶成雪白色，这是好蜜的样子。", "Sixty jars, one a person. The price drops on three."),
    "rice": ("稻花香二号，下单后现磨。", "Milled after you order, at your door in three days."),
    "mushroom": ("冷水泡两小时，一把一大碗。", "Sun-dried on bamboo, nothing added."),
    "eggs": ("珍珠棉托盘，碎一赔一。", "Yes, they live under the chestnut trees."),
}
RUDE = "骗子！都是垃圾"  # held by the word list, for the moderator to see
RUDE_WORDS = ("骗子", "垃圾", "scam")
STREETS = ("解放路", "人民路", "建设街", "和平里", "Garden Street", "桃花巷")
CITIES = ("浙江省杭州市", "广东省广州市", "湖北省武汉市", "上海市", "四川省成都市", "江西省赣州市")
